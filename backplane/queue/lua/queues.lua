-- What waits in each queue, since when, and who works on it. Costs the same whatever waits. The queues of agents are shown
-- as one, `agent:*`; where more than LOOKED_AT of them have runs that wait, so many are counted and the rest estimated.
-- KEYS  1 what all keys of the queue begin with
-- keys  {run_id}  queues  workers  serving  leases; of each queue: pending[:critical|:high|:low]  parked
-- gives for each queue in which runs wait, or that a live worker serves (the default one always): its name, live workers,
--       their slots, its running runs; then for each priority, the highest first: how many may be taken, how many are
--       parked, and the ms since when the one to be taken next may run ('': there is none); in one flat list
local base, DEFAULT, AGENTS, LOOKED_AT = KEYS[1], 'default', 'agent:*', 256
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local found, names, agents = {}, {}, {}
local function shown(name) return string.sub(name, 1, 6) == 'agent:' and AGENTS or name end
local function of_name(name)
  if not found[name] then
    found[name] = { workers = 0, slots = 0, running = 0 }
    names[#names + 1] = name
  end
  return found[name]
end

of_name(DEFAULT)
for _, name in ipairs(redis.call('SMEMBERS', base .. 'queues')) do
  of_name(shown(name))
  if shown(name) == AGENTS then agents[#agents + 1] = name end
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', base .. 'workers', now, '+inf')) do
  local worker, slots = string.match(member, '^(.*)|(%d+)$')
  local serving = redis.call('HGET', base .. 'serving', worker) or DEFAULT
  -- One that serves agents serves nothing else.
  for name in string.gmatch(shown(serving), '[^,]+') do
    local of = of_name(name)
    of.workers, of.slots = of.workers + 1, of.slots + slots
  end
end
for _, run in ipairs(redis.call('ZRANGE', base .. 'leases', 0, -1)) do
  local of = of_name(shown(redis.call('HGET', base .. run, 'queue') or DEFAULT))
  of.running = of.running + 1
end
table.sort(names)

-- How many runs may be taken, how many are parked, and since when the first of them may run (nil: there is none).
local function depth(name, list, priority)
  local queue = name == DEFAULT and base or base .. 'queue:' .. name .. ':'
  local run = redis.call('LINDEX', queue .. list, -1)
  return redis.call('LLEN', queue .. list),
    redis.call('ZCOUNT', queue .. 'parked', priority, priority)
      + redis.call('ZCOUNT', queue .. 'parked', priority + 4, priority + 4),
    run and tonumber(redis.call('HGET', base .. run, 'since'))
end

local function depth_of_agents(list, priority)
  local waiting, parked, since, looked_at = 0, 0, nil, math.min(#agents, LOOKED_AT)
  for i = 1, looked_at do
    local more, held_back, from = depth(agents[i], list, priority)
    waiting, parked = waiting + more, parked + held_back
    if from and (not since or from < since) then since = from end
  end
  local factor = looked_at > 0 and #agents / looked_at or 1
  return math.floor(waiting * factor + 0.5), math.floor(parked * factor + 0.5), since
end

local answer = {}
for _, name in ipairs(names) do
  local of, n = found[name], #answer
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = name, of.workers, of.slots, of.running
  for i, list in ipairs({ 'pending:critical', 'pending:high', 'pending', 'pending:low' }) do
    local waiting, parked, since
    if name == AGENTS then
      waiting, parked, since = depth_of_agents(list, 4 - i)
    else
      waiting, parked, since = depth(name, list, 4 - i)
    end
    n = #answer
    answer[n + 1], answer[n + 2] = waiting, parked
    answer[n + 3] = since and string.format('%.0f', now - since) or ''
  end
end
return answer
