"""One file a stage: the decorator, one library call, one report for the UI."""
