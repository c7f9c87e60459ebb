-- laredo: drops the event trigger; laredo then reads the catalog every 10 s.
BEGIN;
DROP EVENT TRIGGER IF EXISTS laredo_ddl;
DROP EVENT TRIGGER IF EXISTS laredo_ddl_drop;
DROP FUNCTION IF EXISTS laredo.note_ddl();
DROP SCHEMA IF EXISTS laredo;
COMMIT;
