-- Keep events of a run and tell them, unless the run is in newer hands.
-- KEYS  1 jobs:{run_id}   2 agent:events:{run_id}
-- ARGV  1 generation of the writer   2 channel agent:logs:{run_id}   3 entries to keep, about   4 seconds to keep them
--       5 what the channels agent:user:{user_id} begin with   6 the run's user, or '' for the job's   7 the run's id
--       then for each event: its number, its line
-- gives 1, or 0 when a newer generation holds the run, or has written here
-- The entry's id is the event's number, so Redis itself refuses a number that is not higher than the last. Each entry has
-- its writer's generation: the job is gone soon after the run's end, but a writer that stood still may wake up then.
local job = redis.call('HMGET', KEYS[1], 'generation', 'user')
if job[1] and tonumber(job[1]) > tonumber(ARGV[1]) then
  return 0
end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then
  for i = 1, #last[2], 2 do
    if last[2][i] == 'g' and tonumber(last[2][i + 1]) > tonumber(ARGV[1]) then
      return 0
    end
  end
end
local told = {}
for i = 8, #ARGV, 2 do
  local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], ARGV[i] .. '-0', 'e', ARGV[i + 1], 'g', ARGV[1])
  if type(added) == 'string' then
    told[#told + 1] = ARGV[i + 1]
  elseif not string.find(added.err, 'equal or smaller', 1, true) then
    return added
  end
end
if #told > 0 then
  redis.call('EXPIRE', KEYS[2], ARGV[4])
  redis.call('PUBLISH', ARGV[2], table.concat(told, '\n'))
  local user = ARGV[6] ~= '' and ARGV[6] or job[2]
  if user then
    redis.call('PUBLISH', ARGV[5] .. user, ARGV[7] .. ' ' .. ARGV[#ARGV - 1])
  end
end
return 1
