-- Count so many bytes more of a user, if they fit.
-- KEYS  1 storage:{user}   2 storage:known:users
-- ARGV  1 user   2 bytes (below 0: less)   3 most bytes of the user (0: any number)   4 known for, ms
-- gives 1, or 0, and what the user has then
local used, bytes, most = tonumber(redis.call('HGET', KEYS[1], 'bytes') or 0), tonumber(ARGV[2]), tonumber(ARGV[3])
if most > 0 and bytes > 0 and used + bytes > most then return { 0, used } end
return { 1, add(KEYS[1], KEYS[2], ARGV[1], bytes, ARGV[4]) }
