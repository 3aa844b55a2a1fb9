-- A call is over, or waits no longer; whose turn it is gets its slot in the same step.
-- ARGV  9 call
if calls[ARGV[9]] then drop(calls[ARGV[9]]) end
grant()
return epoch
