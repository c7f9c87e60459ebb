-- laredo: writes a message into the WAL at each change of a definition, so that it has an exact place in the stream.
-- A superuser runs this in the database that laredo follows, or the role that the provider has for event triggers.
BEGIN;
CREATE SCHEMA IF NOT EXISTS laredo;
CREATE OR REPLACE FUNCTION laredo.note_ddl() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $laredo$
BEGIN
    -- No other session sees temporary objects.
    IF TG_EVENT = 'sql_drop' THEN
        IF NOT EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE NOT is_temporary) THEN
            RETURN;
        END IF;
    ELSIF EXISTS (SELECT FROM pg_event_trigger_ddl_commands())
        AND NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE schema_name IS DISTINCT FROM 'pg_temp')
    THEN
        RETURN;
    END IF;
    PERFORM pg_logical_emit_message(true, 'laredo.ddl', TG_TAG);
END
$laredo$;
GRANT USAGE ON SCHEMA laredo TO PUBLIC;
DROP EVENT TRIGGER IF EXISTS laredo_ddl;
DROP EVENT TRIGGER IF EXISTS laredo_ddl_drop;
-- What CREATE TABLE makes is empty, unless it is attached, which is an ALTER TABLE.
CREATE EVENT TRIGGER laredo_ddl ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE', 'ALTER INDEX', 'ALTER TYPE', 'ALTER DOMAIN', 'ALTER SCHEMA', 'ALTER EXTENSION',
        'ALTER PUBLICATION', 'CREATE PUBLICATION', 'CREATE INDEX')
    EXECUTE FUNCTION laredo.note_ddl();
CREATE EVENT TRIGGER laredo_ddl_drop ON sql_drop EXECUTE FUNCTION laredo.note_ddl();
-- Also in sessions of replication, which have session_replication_role = replica.
ALTER EVENT TRIGGER laredo_ddl ENABLE ALWAYS;
ALTER EVENT TRIGGER laredo_ddl_drop ENABLE ALWAYS;
COMMIT;
