-- Rebuilds a table from its archive with the manifest alone. SET VARIABLE archive = 'FOLDER' comes before (see README.md).
-- The last statement prints the rows as JSON; the view `rows` is there to ask more of.
CREATE OR REPLACE TEMP TABLE manifest AS FROM read_json(getvariable('archive') || '/manifest.json', columns = {
    epoch: 'BIGINT', artifacts: 'STRUCT(kind TEXT, epoch BIGINT, from_position TEXT, to_position TEXT,
        formats STRUCT(jsonl STRUCT(size_bytes BIGINT), "jsonl.zst" STRUCT(size_bytes BIGINT)))[]',
    columns: 'STRUCT("Name" TEXT, "PrimaryKey" BOOLEAN, "PrimaryKeyOrdinal" INT)[]' }, maximum_object_size = 1000000000);

-- The key's columns in their order, as JSON pointers.
SET VARIABLE key = (
    SELECT list('/' || replace(replace(c."Name", '~', '~0'), '/', '~1') ORDER BY c."PrimaryKeyOrdinal")
    FROM (SELECT unnest(columns) AS c FROM manifest) WHERE c."PrimaryKey");

-- The objects of the newest epoch: its snapshot, and the diffs after it in their order. DuckDB reads JSON, packed or not.
CREATE OR REPLACE TEMP TABLE objects AS
    SELECT place, a.kind, format('{}/epoch={}/{}-{}.', getvariable('archive'), epoch, a.kind,
        replace(concat_ws('-', a.from_position, a.to_position), '/', '_')) || CASE
            WHEN a.formats.jsonl IS NOT NULL THEN 'jsonl'
            WHEN a.formats."jsonl.zst" IS NOT NULL THEN 'jsonl.zst'
            ELSE error('an artifact of the newest epoch is in no format of JSON: add jsonl to the writer''s formats, or use read_archive.py')
        END AS file,
        coalesce(a.formats.jsonl.size_bytes, 1000000000) AS bytes
    FROM (SELECT epoch, unnest(artifacts) AS a, generate_subscripts(artifacts, 1) AS place FROM manifest)
    WHERE a.epoch = epoch;
SET VARIABLE files = (SELECT list(file) FROM objects);
-- A line is no longer than its file; how long one is that is packed is not known.
SET VARIABLE longest = (SELECT greatest(max(bytes), 16777216) FROM objects);

-- What is said of each key, and where.
CREATE OR REPLACE TEMP VIEW changes AS
    SELECT place, (CASE kind WHEN 'diff' THEN json ->> 'action' END) AS action,
        (CASE kind WHEN 'diff' THEN json -> 'new' ELSE json END) AS row,
        [json_extract(coalesce(row, json -> 'old'), pointer)::TEXT FOR pointer IN getvariable('key')] AS key
    FROM read_ndjson_objects(getvariable('files'), filename = true, maximum_object_size = getvariable('longest'))
        JOIN objects ON filename = file;

-- The last word on a key counts, and a TRUNCATE ends whatever was said before its own diff.
CREATE OR REPLACE TEMP VIEW rows AS
    SELECT key, row FROM changes
    WHERE action IS DISTINCT FROM 'TRUNCATE'
        AND place >= (SELECT coalesce(max(place), 0) FROM changes WHERE action = 'TRUNCATE')
    QUALIFY place = max(place) OVER (PARTITION BY key);
SELECT row FROM rows WHERE row IS NOT NULL;
