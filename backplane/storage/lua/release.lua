-- Give up what was reserved for an upload; by so many bytes its user has more now.
-- KEYS  1 storage:{user}   2 storage:uploads:{run}
-- ARGV  1 upload   2 bytes
local entry = redis.call('HGET', KEYS[2], ARGV[1])
if not entry then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[1], 'bytes', ARGV[2] - string.match(entry, ':(%d+)$'))
return 1
