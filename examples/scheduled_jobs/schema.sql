-- Once, and again without harm: psql "$DATABASE_URL" -f schema.sql
-- A table of products that you have already needs the four columns of its embedding, the trigger and the indexes.
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE IF NOT EXISTS products (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- above 0
    title text NOT NULL,
    description text,
    updated_at timestamptz NOT NULL DEFAULT now(), -- when its text last changed
    embedding vector(768), -- as many numbers as MODEL gives
    embedding_of timestamptz, -- the updated_at of the text that it is the embedding of
    embedding_refreshed_at timestamptz, -- the hour that it was made for
    embedding_fence bigint NOT NULL DEFAULT 0 -- the number of the run that made it
);

-- Who changes a text and leaves updated_at alone has it set all the same.
CREATE OR REPLACE FUNCTION products_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER products_changed BEFORE UPDATE OF title, description ON products FOR EACH ROW
WHEN ((NEW.title, NEW.description) IS DISTINCT FROM (OLD.title, OLD.description) AND NEW.updated_at = OLD.updated_at)
EXECUTE FUNCTION products_changed();

-- What an hour has to do, without reading what it has not.
CREATE INDEX IF NOT EXISTS products_stale ON products (id) WHERE embedding_of IS DISTINCT FROM updated_at;
CREATE INDEX IF NOT EXISTS products_refreshed ON products (embedding_refreshed_at);
-- For ORDER BY embedding <-> ...; vectors of length one have the same neighbours by <=> (vector_cosine_ops).
CREATE INDEX IF NOT EXISTS products_nearest ON products USING hnsw (embedding vector_l2_ops);

CREATE TABLE IF NOT EXISTS embedding_reports (
    key text PRIMARY KEY, -- the run's idempotency key: one report a night, however often it is run
    since timestamptz NOT NULL,
    until timestamptz NOT NULL,
    refreshed bigint NOT NULL
);
