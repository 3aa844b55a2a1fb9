-- Reserve room for a file that is being uploaded, in its run and among all that its user has. Called again for the same
-- upload, it takes more or less, and for longer.
-- KEYS  1 storage:{user}   2 storage:uploads:{run}   3 storage:known:users
-- ARGV  1 upload   2 bytes   3 most bytes of the user (0: any number)   4 reserved for, ms   5 known for, ms   6 user
-- gives 1 and what others have reserved in the run (uploads, bytes), or 0 and what the user has (bytes)
local user, run, upload, size = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local own, others, other_bytes, abandoned = 0, 0, 0, 0
local entries = redis.call('HGETALL', run)
for i = 1, #entries, 2 do
  local ends, bytes = string.match(entries[i + 1], '^(%d+):(%d+)$')
  if tonumber(ends) < now then
    -- Its process is gone.
    redis.call('HDEL', run, entries[i])
    abandoned = abandoned + bytes
  elseif entries[i] == upload then
    own = tonumber(bytes)
  else
    others, other_bytes = others + 1, other_bytes + bytes
  end
end
local used = tonumber(redis.call('HGET', user, 'bytes') or 0) - abandoned
local most = tonumber(ARGV[3])
local fits = most == 0 or used + size - own <= most
add(user, KEYS[3], ARGV[6], (fits and size - own or 0) - abandoned, ARGV[5])
if not fits then return { 0, math.max(used - own, 0) } end
redis.call('HSET', run, upload, string.format('%.0f:%.0f', now + ARGV[4], size))
redis.call('PEXPIRE', run, ARGV[4])
return { 1, others, other_bytes }
