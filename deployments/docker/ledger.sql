-- Run once, by PostgreSQL's image, when the volume is new: the ledger has a database of its own beside Prefect's.
CREATE DATABASE ledger;
