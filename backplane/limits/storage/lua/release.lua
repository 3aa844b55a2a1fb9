-- Give up what was reserved for an upload; by so many bytes its user has more now.
-- KEYS  1 storage:{user}   2 storage:uploads:{run}   3 storage:known:users
-- ARGV  1 upload   2 bytes   3 user   4 known for, ms
local entry = redis.call('HGET', KEYS[2], ARGV[1])
if not entry then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
add(KEYS[1], KEYS[3], ARGV[3], ARGV[2] - string.match(entry, ':(%d+)$'), ARGV[4])
return 1
