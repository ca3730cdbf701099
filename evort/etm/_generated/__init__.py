"""Code made by `flatc` from `etm.fbs` (see `.ci/etm_schema.py`)."""
