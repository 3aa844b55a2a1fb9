-- Count so many bytes more of a user, if they fit.
-- KEYS  1 storage:{user}
-- ARGV  1 bytes (below 0: less)   2 most bytes of the user (0: any number)   3 known for, ms
-- gives 1, or 0, and what the user has then
local used, bytes, most = tonumber(redis.call('HGET', KEYS[1], 'bytes') or 0), tonumber(ARGV[1]), tonumber(ARGV[2])
if most > 0 and bytes > 0 and used + bytes > most then return { 0, used } end
used = redis.call('HINCRBY', KEYS[1], 'bytes', bytes)
if redis.call('TTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return { 1, used }
