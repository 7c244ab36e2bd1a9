"""Who runs next: pure decisions. Time is an argument; nothing here waits, reads or writes."""
