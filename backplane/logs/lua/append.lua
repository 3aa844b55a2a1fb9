-- Publish events of a run, and keep those that the database does not have yet, unless the run has a newer generation.
-- KEYS  1 jobs:{run_id}   2 agent:events:{run_id}
-- ARGV  1 generation of the writer   2 channel agent:logs:{run_id}   3 the first number that the database does not have
--       4 seconds to keep what is kept   5 what the channels agent:user:{user_id} begin with
--       6 the run's user, or '' for the job's   7 the run's id
--       then for each event: its number, its line; none perhaps
-- gives 1; 0 when the run has a newer generation, or has written here; 2 when what the database does not have was not
--       taken: Redis has no memory or no disk for it, or does not know the run, so that the database must judge first
-- The entry's id is the event's number, so Redis itself refuses a number that is not higher than the last. Each entry has
-- its writer's generation. The order matters: Redis without memory refuses the first write of a script that needs some,
-- and no later one. So XADD comes before what gives memory back, which is never refused for want of memory.
local job = redis.call('HMGET', KEYS[1], 'generation', 'user')
local generation, missing = tonumber(ARGV[1]), tonumber(ARGV[3])
if job[1] and tonumber(job[1]) > generation then return 0 end
local last, last_id = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1], 0
if last then
  for i = 1, #last[2], 2 do
    if last[2][i] == 'g' and tonumber(last[2][i + 1]) > generation then return 0 end
  end
  last_id = tonumber(string.match(last[1], '^%d+'))
end
local answer, kept, lines, newest = 1, false, {}, nil
for i = 8, #ARGV, 2 do
  local number, published = tonumber(ARGV[i]), false
  if number < missing then
    published = number > last_id
  elseif not job[1] then
    answer = 2
  else
    local added
    if kept then
      added = redis.pcall('XADD', KEYS[2], ARGV[i] .. '-0', 'e', ARGV[i + 1], 'g', ARGV[1])
    else
      added = redis.pcall('XADD', KEYS[2], 'MINID', '~', ARGV[3], ARGV[i] .. '-0', 'e', ARGV[i + 1], 'g', ARGV[1])
    end
    if type(added) == 'string' then
      kept, published = true, true
    elseif string.find(added.err, 'OOM', 1, true) or string.find(added.err, 'MISCONF', 1, true) then
      answer = 2
    elseif not string.find(added.err, 'equal or smaller', 1, true) then
      return added
    end
  end
  if answer == 2 then break end
  if published then
    lines[#lines + 1] = ARGV[i + 1]
    newest = ARGV[i]
  end
end
if kept then
  redis.call('EXPIRE', KEYS[2], ARGV[4])
elseif last and last_id < missing then
  redis.pcall('UNLINK', KEYS[2])
elseif last then
  redis.pcall('XTRIM', KEYS[2], 'MINID', '~', ARGV[3])
end
if newest then
  redis.call('PUBLISH', ARGV[2], table.concat(lines, '\n'))
  local user = ARGV[6] ~= '' and ARGV[6] or job[2]
  if user then redis.call('PUBLISH', ARGV[5] .. user, ARGV[7] .. ' ' .. newest) end
end
return answer
