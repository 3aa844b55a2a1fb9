-- A call waits no longer.
-- ARGV  own+1 ticket   own+2 run
-- keys  waits:{run_id}
for _, b in ipairs(buckets) do no_longer_first(b, ARGV[own + 1]) end
redis.call('HDEL', KEYS[1] .. 'waits:' .. ARGV[own + 2], ARGV[own + 1])
