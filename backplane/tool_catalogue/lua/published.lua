-- The sets of tools of live workers.
-- KEYS  1 the digests by their ends
-- ARGV  1 what the keys of documents begin with
-- gives digest and document of each, in one flat list, the newest first
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local found = {}
for _, digest in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', string.format('(%.0f', now))) do
  local document = redis.call('GET', ARGV[1] .. digest)
  if document then
    found[#found + 1] = digest
    found[#found + 1] = document
  end
end
return found
