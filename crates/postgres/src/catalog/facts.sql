-- Everything laredo knows about tables, as one JSON value per table in the order asked for.
-- The words in braces are put in: a list of (place, schema, table), a query of what the publication says of each table,
-- and the publication's name.
WITH RECURSIVE wanted (place, schema_name, table_name) AS (VALUES {wanted}),
published (schema_name, table_name, columns, filter, by_schema) AS ({published}),
found AS (
    SELECT w.place, n.oid AS nspoid, c.xmin AS changed_by, c.*
    FROM wanted w
    JOIN pg_namespace n ON n.nspname = w.schema_name
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.table_name AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
),
-- The columns of the index that tells rows apart: the replica identity's, or the primary key.
keys AS (
    SELECT i.indrelid, json_agg(a.attname ORDER BY k.place) AS columns
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indrelid
    CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indisvalid AND k.place <= i.indnkeyatts
      AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary AND i.indimmediate END
    GROUP BY i.indrelid
),
attributes AS (
    SELECT f.place, a.xmin AS changed_by, a.* FROM found f JOIN pg_attribute a ON a.attrelid = f.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped
),
-- Every type that a column needs, directly or inside another one.
needed (place, type_oid) AS (
    SELECT place, atttypid FROM attributes
    UNION
    SELECT n.place, inner_type.oid
    FROM needed n
    JOIN pg_type t ON t.oid = n.type_oid
    CROSS JOIN LATERAL (
        SELECT e.oid FROM pg_type e WHERE e.oid = t.typelem AND (e.typarray = t.oid OR t.oid IN (22, 30))
        UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
        UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid
        UNION ALL SELECT a.atttypid FROM pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) inner_type
),
types AS (
    SELECT n.place, json_agg(json_build_object(
        'oid', t.oid::int8,
        'name', t.typname,
        'sends', t.typsend <> 0,
        'kind', CASE
            WHEN t.typtype = 'e' THEN json_build_object('enum', (
                SELECT coalesce(json_agg(e.enumlabel ORDER BY e.enumsortorder), '[]') FROM pg_enum e
                WHERE e.enumtypid = t.oid))
            WHEN t.typtype = 'd' THEN json_build_object('domain', t.typbasetype::int8)
            WHEN t.typtype = 'c' THEN json_build_object('composite', (
                SELECT coalesce(json_agg(json_build_array(a.attname, a.atttypid::int8) ORDER BY a.attnum), '[]')
                FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped))
            WHEN t.typtype = 'r' THEN json_build_object('range', (
                SELECT r.rngsubtype::int8 FROM pg_range r WHERE r.rngtypid = t.oid))
            WHEN t.typtype = 'm' THEN json_build_object('multirange', (
                SELECT r.rngtypid::int8 FROM pg_range r WHERE r.rngmultitypid = t.oid))
            WHEN e.oid IS NOT NULL THEN json_build_object('array', e.oid::int8)
            -- Only lc_monetary says how many decimals an amount has; nearly everywhere there are two.
            WHEN t.oid = 'money'::regtype AND scale(1::money::numeric) <> 2
                THEN json_build_object('money', scale(1::money::numeric))
            -- Equality of citext is that of lower(), which in the C locale knows ASCII alone.
            WHEN t.typname = 'citext' AND t.typtype = 'b' AND lower(U&'\00C9') <> U&'\00E9' THEN '"ascii"'::json
            ELSE '"base"'::json
        END) ORDER BY t.oid) AS list
    FROM needed n
    JOIN pg_type t ON t.oid = n.type_oid
    LEFT JOIN pg_type e ON e.oid = t.typelem AND (e.typarray = t.oid OR t.oid IN (22, 30))
    GROUP BY n.place
)
SELECT f.place, json_build_object(
    'definition', json_build_object(
        'oid', f.oid::int8,
        'file', json_build_object(
            'number', f.relfilenode::int8,
            'changed_by', f.changed_by::text::int8,
            'columns', (SELECT hashtextextended(string_agg(a.changed_by::text, ' ' ORDER BY a.attnum), 0)
                FROM attributes a WHERE a.place = f.place)),
        'kind', f.relkind,
        'persistence', f.relpersistence,
        'identity', f.relreplident,
        'key', keys.columns,
        'ancestors', CASE WHEN f.relispartition THEN (
            SELECT json_agg(json_build_array(n.nspname, c.relname)) FROM pg_partition_ancestors(f.oid) p
            JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.oid <> f.oid) ELSE '[]' END,
        'columns', (
            SELECT coalesce(json_agg(json_build_object(
                'number', a.attnum,
                'name', a.attname,
                'type_oid', a.atttypid::int8,
                'type_modifier', a.atttypmod,
                'type_name', format_type(a.atttypid, a.atttypmod),
                'not_null', a.attnotnull,
                'generated', a.attgenerated <> '') ORDER BY a.attnum), '[]')
            FROM attributes a WHERE a.place = f.place),
        'leaves', CASE WHEN f.relkind = 'p' THEN (
            SELECT coalesce(json_agg(json_build_object(
                'oid', c.oid::int8,
                'file', c.relfilenode::int8,
                'schema', n.nspname,
                'table', c.relname,
                'kind', c.relkind,
                'persistence', c.relpersistence,
                'identity', c.relreplident,
                'key', k.columns) ORDER BY c.oid), '[]')
            FROM pg_partition_tree(f.oid) p
            JOIN pg_class c ON c.oid = p.relid
            JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN keys k ON k.indrelid = c.oid
            WHERE p.isleaf AND c.oid <> f.oid) ELSE '[]' END,
        'types', coalesce(types.list, '[]'),
        'published', (
            SELECT json_build_object(
                'columns', u.columns,
                'filter', u.filter,
                'insert', p.pubinsert,
                'update', p.pubupdate,
                'delete', p.pubdelete,
                'truncate', p.pubtruncate,
                'via_root', p.pubviaroot,
                -- Taken out and put back, or altered and altered back, it is another one.
                'version', concat_ws(' ', p.oid, p.xmin, u.by_schema, (
                    SELECT string_agg(r.oid::text, ' ' ORDER BY r.oid) FROM pg_publication_rel r
                    WHERE r.prpubid = p.oid AND (r.prrelid = f.oid OR r.prrelid IN (
                        SELECT relid FROM pg_partition_ancestors(f.oid))))))
            FROM published u JOIN wanted w USING (schema_name, table_name)
            JOIN pg_publication p ON p.pubname = {publication}
            WHERE w.place = f.place)
    ),
    'access', json_build_object(
        'owner', pg_get_userbyid(f.relowner),
        'owned', pg_has_role(f.relowner, 'USAGE'),
        'usage', has_schema_privilege(f.nspoid, 'USAGE'),
        'select', has_table_privilege(f.oid, 'SELECT'),
        'publication_via_root', (SELECT p.pubviaroot FROM pg_publication p WHERE p.pubname = {publication}),
        'hides_rows', row_security_active(f.oid),
        'deferrable_key', EXISTS (
            SELECT FROM pg_index i WHERE i.indrelid = f.oid AND i.indisprimary AND NOT i.indimmediate),
        'unique', (
            SELECT coalesce(json_agg((
                SELECT json_agg(a.attname) FROM pg_attribute a
                WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))), '[]')
            FROM pg_index i
            WHERE i.indrelid = f.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL)
    ))
FROM found f
LEFT JOIN keys ON keys.indrelid = f.oid
LEFT JOIN types ON types.place = f.place
