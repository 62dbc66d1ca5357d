"""A fake teacher for benchmarks and drills: fast, faulty as told, repeatable, and with a log of all that it served."""
