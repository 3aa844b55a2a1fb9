-- The numbers of queues, and where runs stand.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  1 RUNNING_SAMPLED   2 the queue whose numbers are asked   3… run ids, none perhaps
-- keys  {run_id}  parked:{gate}  held:{gate}  leases  scheduled  dead  workers  serving; of each queue: order  parked
--       pending[:critical|:high|:low]  durations
-- gives  1 how many are scheduled, and dead
--        2 for the queue that is asked and those of the runs, in one flat list: its name; how many run, on workers that serve
--          it; these workers, their slots; how many runs of other queues they may take before one that comes now; the
--          queues of their running runs, of LOOKED_AT at most, as "queue=runs" joined by commas (those of agents together); the queues that live
--          workers serve, joined by commas ('' for these two while all workers serve the default queue alone); by
--          priority, the highest first, how many may be taken and how many are parked; the seconds that the last runs
--          took, joined by spaces (a hundred values are dear to answer one by one); the seconds for which the running runs
--          have run, of RUNNING_SAMPLED of them at most, joined by spaces
--        3 for each run, in one flat list: its index in its order (-1: it does not wait), the gate where it is parked (0:
--          none), its priority, its resource, the index of its queue in 2 (from 0), how many runs of other queues go
--          before it, and how long the runs under this cap have run
local base, DEFAULT, LOOKED_AT = KEYS[1], 'default', 256
local most, clock = tonumber(ARGV[1]), redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local NAMES = { 'pending:critical', 'pending:high', 'pending', 'pending:low' }

local function of_queue(name)
  return name == DEFAULT and base or base .. 'queue:' .. name .. ':'
end

local function age(state, claimed_at)
  local since = state == 'running' and tonumber(claimed_at) or now
  return string.format('%.1f', math.max(now - since, 0) / 1000)
end

local function ages_of(runs)
  local ages = {}
  for _, run in ipairs(runs) do
    local job = redis.call('HMGET', base .. run, 'state', 'claimed_at')
    ages[#ages + 1] = age(job[1], job[2])
  end
  return table.concat(ages, ' ')
end

-- Workers that serve the same queues are one group. One that serves agents serves nothing else; which agents is looked for
-- only when one of these queues is asked for, for there may be thousands.
local function is_agents(name) return string.sub(name, 1, 6) == 'agent:' end
local groups, group_of, served, serves_named = {}, {}, {}, redis.call('EXISTS', base .. 'serving') == 1
local function serves(group, name)
  return group.queues[name] or (group.agents and is_agents(name) and string.find(group.agents, ',' .. name .. ',', 1, true))
end
local function group_named(list)
  if not groups[list] then
    groups[list] = { queues = {}, workers = 0, slots = 0, agents = is_agents(list) and ',' .. list .. ',' }
    for name in string.gmatch(is_agents(list) and '' or list, '[^,]+') do groups[list].queues[name] = true end
  end
  return groups[list]
end
for _, member in ipairs(redis.call('ZRANGE', base .. 'workers', 0, -1)) do
  local worker, slots = string.match(member, '^(.*)|(%d+)$')
  local group = group_named(serves_named and redis.call('HGET', base .. 'serving', worker) or DEFAULT)
  group_of[worker] = group
  group.workers, group.slots = group.workers + 1, group.slots + slots
end
for _, group in pairs(groups) do
  for name in pairs(group.queues) do served[#served + 1] = name end
end
local leases = redis.call('ZCARD', base .. 'leases')
local default_group = groups[DEFAULT] or { queues = { [DEFAULT] = true } }
local sample
local function sampled()
  if not sample then
    sample = {}
    for i, run in ipairs(redis.call('ZRANGE', base .. 'leases', 0, LOOKED_AT - 1)) do
      local job = redis.call('HMGET', base .. run, 'state', 'claimed_at', 'worker', 'queue')
      sample[i] = { age = age(job[1], job[2]), group = group_of[job[3]] or default_group, queue = job[4] or DEFAULT }
    end
  end
  return sample
end

-- Of other queues that the same workers serve: the runs before this score (all of them without one), each as the share of
-- their workers that serve this queue too.
local function competing(queue, score)
  local slots, shared = {}, {}
  for _, group in pairs(groups) do
    for name in pairs(group.queues) do
      slots[name] = (slots[name] or 0) + group.slots
      if group.queues[queue] then shared[name] = (shared[name] or 0) + group.slots end
    end
  end
  local runs = 0
  for name, of in pairs(shared) do
    if name ~= queue and of > 0 then
      local order = of_queue(name) .. 'order'
      local before = score and redis.call('ZCOUNT', order, '-inf', score) or redis.call('ZCARD', order)
      runs = runs + before * of / slots[name]
    end
  end
  return string.format('%.2f', runs)
end

local queues, index_of, ready, asked = {}, {}, {}, 0
local function numbers_of(name)
  if index_of[name] then return index_of[name] end
  local queue, running, workers, slots, others, busy, ages = of_queue(name), leases, 0, 0, '0', '', nil
  for _, group in pairs(groups) do
    if serves(group, name) then workers, slots = workers + group.workers, slots + group.slots end
  end
  if serves_named or name ~= DEFAULT then
    local runs, of, kinds = sampled(), {}, {}
    running, ages = 0, {}
    for _, run in ipairs(runs) do
      if run.queue == name or serves(run.group, name) then
        local kind = is_agents(run.queue) and 'agent:*' or run.queue
        running = running + 1
        of[kind] = (of[kind] or 0) + 1
        if #ages < most then ages[#ages + 1] = run.age end
      end
    end
    for kind, count in pairs(of) do kinds[#kinds + 1] = kind .. '=' .. count end
    if #runs > 0 then running = math.floor(running * leases / #runs + 0.5) end
    others, busy, ages = competing(name), table.concat(kinds, ','), table.concat(ages, ' ')
  end
  local n = #queues
  queues[n + 1], queues[n + 2], queues[n + 3], queues[n + 4], queues[n + 5] = name, running, workers, slots, others
  queues[n + 6], queues[n + 7] = busy, serves_named and table.concat(served, ',') or ''
  for i, list in ipairs(NAMES) do
    local priority = 4 - i
    queues[n + 6 + 2 * i] = redis.call('LLEN', queue .. list)
    queues[n + 7 + 2 * i] = redis.call('ZCOUNT', queue .. 'parked', priority, priority)
      + redis.call('ZCOUNT', queue .. 'parked', priority + 4, priority + 4)
  end
  local kind = is_agents(name) and of_queue('agent:*') or queue
  queues[n + 16] = table.concat(redis.call('LRANGE', kind .. 'durations', 0, -1), ' ')
  queues[n + 17] = ages or ages_of(redis.call('ZRANGE', base .. 'leases', 0, most - 1))
  index_of[name], ready[name] = asked, redis.call('ZCARD', queue .. 'order')
  asked = asked + 1
  return index_of[name]
end

numbers_of(ARGV[2])
local at_gates, standings = {}, {}
for i = 3, #ARGV do
  local run = ARGV[i]
  local job = redis.call('HMGET', base .. run, 'state', 'gate', 'user', 'priority', 'resource', 'queue', 'score')
  local name = job[6] or DEFAULT
  local index, gate, ages, others, of = -1, 0, '', '0', 0
  if job[1] == 'queued' then
    index, of = redis.call('ZRANK', of_queue(name) .. 'order', run) or -1, numbers_of(name)
    if serves_named then others = competing(name, job[7]) end
  elseif job[1] == 'parked' and job[2] and job[3] and job[4] then
    gate, of = tonumber(job[2]), numbers_of(name)
    local names = { 'user:' .. job[4] .. ':' .. job[3], 'tier:' .. job[4], 'resource:' .. (job[5] or '') }
    local rank = redis.call('ZRANK', base .. 'parked:' .. names[gate], run)
    index = rank and ready[name] + rank or -1
    if serves_named then others = competing(name) end
    local held = base .. 'held:' .. names[gate]
    at_gates[held] = at_gates[held] or ages_of(redis.call('SRANDMEMBER', held, most))
    ages = at_gates[held]
  end
  local n = #standings
  standings[n + 1], standings[n + 2], standings[n + 3], standings[n + 4] = index, gate, job[4] or '0', job[5] or ''
  standings[n + 5], standings[n + 6], standings[n + 7] = of, others, ages
end
return { redis.call('ZCARD', base .. 'scheduled'), redis.call('ZCARD', base .. 'dead'), queues, standings }
