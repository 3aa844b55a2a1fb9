-- Say that a live worker has this set of tools.
-- KEYS  1 the digests by their ends   2 the document of this one   3 the workers that publish, by their ends
-- ARGV  1 its digest   2 how long it holds, ms   3 the document, or "" for the one that is there   4 the worker
-- gives 1, or 0 when the document is not there and has to be given
if ARGV[3] ~= '' then
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
elseif redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0 then
  return 0
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for key, member in pairs({ [KEYS[1]] = ARGV[1], [KEYS[3]] = ARGV[4] }) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
  redis.call('ZADD', key, string.format('%.0f', now + ARGV[2]), member)
  -- Another worker may have published for longer.
  if redis.call('PTTL', key) < tonumber(ARGV[2]) then redis.call('PEXPIRE', key, ARGV[2]) end
end
return 1
