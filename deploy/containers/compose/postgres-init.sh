#!/bin/sh
# The first start of PostgreSQL: a role for laredo-server, a table, and a publication.
set -eu
psql --username postgres --dbname app --set ON_ERROR_STOP=1 \
    --set password="$(cat /run/secrets/laredo_password)" <<'SQL'
CREATE ROLE laredo LOGIN REPLICATION PASSWORD :'password';
CREATE TABLE public.orders (id bigint PRIMARY KEY, status text NOT NULL, total numeric NOT NULL);
INSERT INTO public.orders SELECT n, 'new', n * 1.5 FROM generate_series(1, 1000) n;
GRANT SELECT ON public.orders TO laredo;
CREATE PUBLICATION laredo FOR TABLE public.orders;
SQL
