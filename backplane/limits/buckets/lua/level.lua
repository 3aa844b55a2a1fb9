-- How much is in a bucket now, as text; below zero it owes.
return text(level(buckets[1]))
