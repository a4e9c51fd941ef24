CREATE TABLE orders (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    item TEXT NOT NULL,
    state TEXT NOT NULL,
    placed REAL NOT NULL
);
