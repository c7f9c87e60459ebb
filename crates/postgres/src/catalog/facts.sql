-- Everything laredo knows of one table, as one JSON value; no row where there is no such table.
--
-- The query takes no lock that a migration could block: it reads the catalog's tables alone, and no function in it opens
-- the table. The words in braces are put in: the names, as literals, and what depends on PostgreSQL's version.
WITH RECURSIVE found AS (
    SELECT c.*, c.xmin AS changed_by
    FROM pg_namespace n
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = {table} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    WHERE n.nspname = {schema}
),
publication AS (SELECT p.xmin AS version, p.* FROM pg_publication p WHERE p.pubname = {publication}),
-- Every table above and below, with the version of its link. A partition that is being detached is no longer one.
above (oid, place, link) AS (
    SELECT i.inhparent, 1, i.xmin FROM found f JOIN pg_inherits i ON i.inhrelid = f.oid
    WHERE f.relispartition AND NOT i.inhdetachpending
    UNION ALL
    SELECT i.inhparent, a.place + 1, i.xmin FROM above a
    JOIN pg_class c ON c.oid = a.oid AND c.relispartition
    JOIN pg_inherits i ON i.inhrelid = a.oid AND NOT i.inhdetachpending
),
below (oid, parent, link, command) AS (
    SELECT i.inhrelid, i.inhparent, i.xmin, i.cmin FROM found f JOIN pg_inherits i ON i.inhparent = f.oid
    WHERE f.relkind = 'p' AND NOT i.inhdetachpending
    UNION ALL
    SELECT i.inhrelid, i.inhparent, i.xmin, i.cmin FROM below b
    JOIN pg_inherits i ON i.inhparent = b.oid AND NOT i.inhdetachpending
),
-- The columns of the index that tells rows apart: the replica identity's, or the primary key.
keys AS (
    SELECT i.indrelid, json_agg(a.attname ORDER BY k.place) AS columns,
        min(concat_ws(' ', i.indexrelid, i.xmin)) FILTER (WHERE c.relreplident = 'i') AS version
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indrelid
    CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid IN (SELECT oid FROM found UNION ALL SELECT oid FROM below)
      AND i.indisvalid AND k.place <= i.indnkeyatts
      AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary AND i.indimmediate END
    GROUP BY i.indrelid
),
attributes AS (
    SELECT a.* FROM found f JOIN pg_attribute a ON a.attrelid = f.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped
),
-- Every type that a column needs, directly or inside another one.
needed (type_oid) AS (
    SELECT atttypid FROM attributes
    UNION
    SELECT inner_type.oid
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
    SELECT json_agg(json_build_object(
        'oid', t.oid::int8,
        'name', t.typname,
        'sends', t.typsend <> 0,
        'kind', CASE
            WHEN t.typtype = 'e' THEN json_build_object('enum', (
                SELECT coalesce(json_agg(json_build_object(
                    'label', e.enumlabel, 'oid', e.oid::int8, 'changed_by', e.xmin::text::int8) ORDER BY e.enumsortorder), '[]')
                FROM pg_enum e WHERE e.enumtypid = t.oid))
            WHEN t.typtype = 'd' THEN json_build_object('domain', t.typbasetype::int8)
            -- An attribute's number is never given to another one.
            WHEN t.typtype = 'c' THEN json_build_object('composite', (
                SELECT coalesce(json_agg(json_build_array(a.attname, a.atttypid::int8, a.attnum) ORDER BY a.attnum), '[]')
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
),
partitions AS (
    SELECT json_agg(json_build_object(
        'oid', c.oid::int8,
        'parent', b.parent::int8,
        'link', b.link::text::int8,
        -- CREATE TABLE ... PARTITION OF makes the columns and then the link; ATTACH PARTITION changes the columns as it makes the link.
        'born', coalesce((
            SELECT bool_and(a.xmin = b.link) AND max(a.cmin::text::int8) FILTER (WHERE a.attnum > 0) < b.command::text::int8
            FROM pg_attribute a WHERE a.attrelid = c.oid), false),
        'file', c.relfilenode::int8,
        'schema', n.nspname,
        'table', c.relname,
        'kind', c.relkind,
        'persistence', c.relpersistence,
        'identity', c.relreplident,
        'key', k.columns,
        'index', k.version) ORDER BY c.oid) AS list
    FROM below b
    JOIN pg_class c ON c.oid = b.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN keys k ON k.indrelid = c.oid
),
-- The table and those above it.
line AS (SELECT oid, 0 AS place FROM found UNION ALL SELECT oid, place FROM above),
-- How the publication has each of them: by itself, or with its schema.
members AS (
    SELECT t.oid, t.place, r.oid AS by_table, r.xmin AS version, {attrs} AS attrs, {qual} AS qual, {by_schema} AS by_schema
    FROM publication p
    CROSS JOIN line t
    JOIN pg_class c ON c.oid = t.oid
    LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = t.oid
),
published AS (
    SELECT json_build_object(
        'columns', {columns},
        'filter', CASE WHEN NOT p.puballtables AND m.by_schema IS NULL THEN md5(m.qual::text) END,
        'insert', p.pubinsert,
        'update', p.pubupdate,
        'delete', p.pubdelete,
        'truncate', p.pubtruncate,
        'via_root', p.pubviaroot,
        -- Taken out and put back, or altered and altered back, it is another one. So it is where the table, or one above it, was
        -- moved to another schema and back while only its schema was published.
        'version', concat_ws(' ', p.oid, p.version, (
            SELECT string_agg(json_build_array(a.by_table::int8, a.version::text, a.by_schema::int8, (
                SELECT d.xmin::text FROM pg_depend d
                WHERE a.by_schema IS NOT NULL AND d.classid = 'pg_class'::regclass AND d.objid = a.oid AND d.objsubid = 0
                  AND d.refclassid = 'pg_namespace'::regclass))::text, ' ' ORDER BY a.place)
            FROM members a))) AS facts
    FROM found f
    CROSS JOIN publication p
    JOIN members m ON m.place = 0
    WHERE f.relkind IN ('r', 'p') AND f.relpersistence = 'p'
      AND CASE WHEN p.pubviaroot THEN NOT EXISTS (
                SELECT FROM members a WHERE a.place > 0 AND (p.puballtables OR a.by_table IS NOT NULL OR a.by_schema IS NOT NULL))
            ELSE f.relkind = 'r' END
      AND (p.puballtables OR EXISTS (
                SELECT FROM members a WHERE (a.place = 0 OR NOT p.pubviaroot)
                  AND (a.by_table IS NOT NULL OR a.by_schema IS NOT NULL)))
),
-- Every entry that decides what the rows are, by the transaction that changed it last.
changes (changed_by) AS (
    SELECT c.xmin FROM pg_class c WHERE c.oid IN (SELECT oid FROM line UNION ALL SELECT oid FROM below)
    UNION ALL SELECT link FROM above
    UNION ALL SELECT link FROM below
    UNION ALL SELECT a.xmin FROM pg_attribute a WHERE a.attnum > 0 AND a.attrelid IN (
        SELECT oid FROM line
        UNION ALL SELECT t.typrelid FROM needed n JOIN pg_type t ON t.oid = n.type_oid WHERE t.typtype = 'c')
    UNION ALL SELECT t.xmin FROM needed n JOIN pg_type t ON t.oid = n.type_oid
    UNION ALL SELECT e.xmin FROM needed n JOIN pg_enum e ON e.enumtypid = n.type_oid
    UNION ALL SELECT version FROM publication
    UNION ALL SELECT version FROM members WHERE version IS NOT NULL
)
SELECT json_build_object(
    'definition', json_build_object(
        'oid', f.oid::int8,
        'file', json_build_object(
            'number', f.relfilenode::int8,
            'toast', f.reltoastrelid::int8),
        'kind', f.relkind,
        'persistence', f.relpersistence,
        'identity', f.relreplident,
        'key', (SELECT k.columns FROM keys k WHERE k.indrelid = f.oid),
        'ancestors', coalesce((
            SELECT json_agg(json_build_object(
                'schema', n.nspname, 'table', c.relname, 'link', a.link::text::int8) ORDER BY a.place)
            FROM above a
            JOIN pg_class c ON c.oid = a.oid JOIN pg_namespace n ON n.oid = c.relnamespace), '[]'),
        -- ATTACH PARTITION and DETACH PARTITION change the entry of every column.
        'column_versions', (
            SELECT json_agg((
                SELECT json_agg(a.xmin::text::int8 ORDER BY a.attnum) FROM pg_attribute a
                WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped) ORDER BY t.place)
            FROM line t),
        'columns', (
            SELECT coalesce(json_agg(json_build_object(
                'number', a.attnum,
                'name', a.attname,
                'type_oid', a.atttypid::int8,
                'type_modifier', a.atttypmod,
                'type_name', format_type(a.atttypid, a.atttypmod),
                'not_null', a.attnotnull,
                'generated', a.attgenerated <> '') ORDER BY a.attnum), '[]')
            FROM attributes a),
        'partitions', coalesce((SELECT list FROM partitions), '[]'),
        'types', coalesce((SELECT list FROM types), '[]'),
        'published', (SELECT facts FROM published)
    ),
    'changed_by', f.changed_by::text::int8,
    'newest_change', (SELECT changed_by::text::int8 FROM changes ORDER BY age(changed_by) LIMIT 1),
    -- TRUNCATE empties these, and building an index on rows fills them. From PostgreSQL 18 on it does so only where autovacuum
    -- is active. `relhasindex` stays true when the last index is dropped.
    'counts_rows', f.relpages > 0 OR f.reltuples > 0
        OR NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = f.oid AND i.indisvalid AND i.indisready)
        OR (current_setting('server_version_num')::int >= 180000
            AND (NOT current_setting('autovacuum')::bool OR NOT current_setting('track_counts')::bool
                OR EXISTS (SELECT FROM unnest(f.reloptions) o WHERE o LIKE 'autovacuum_enabled=%'))),
    'access', json_build_object(
        'owner', pg_get_userbyid(f.relowner),
        'owned', coalesce(pg_has_role(f.relowner, 'USAGE'), false),
        'usage', coalesce(has_schema_privilege(f.relnamespace, 'USAGE'), false),
        -- On the table, or on each column that is sent.
        'select', coalesce(has_table_privilege(f.oid, 'SELECT') OR (
            SELECT bool_and(has_column_privilege(f.oid, a.attnum, 'SELECT')) FROM attributes a
            WHERE CASE json_typeof((SELECT p.facts -> 'columns' FROM published p))
                WHEN 'array' THEN a.attname::text IN (SELECT json_array_elements_text(p.facts -> 'columns') FROM published p)
                ELSE a.attgenerated = '' END), false),
        'publication_via_root', (SELECT p.pubviaroot FROM publication p),
        'hides_rows', coalesce(row_security_active(f.oid), false),
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
