-- How many there are, and where runs stand.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  1 RUNNING_SAMPLED   2… run ids, none perhaps
-- keys  {run_id}  pending[:critical|:high|:low]  order  parked  parked:{gate}  held:{gate}  leases  scheduled  dead
--       workers  durations
-- gives  1 how many are running, scheduled, dead; workers, their slots; then by priority, the highest first, how many may
--          be taken and how many are parked
--        2 the seconds that the last runs took, joined by spaces: a hundred values are dear to answer one by one
--        3 for each run: its index in its order (-1: it does not wait), the gate where it is parked (0: none), its
--          priority, its resource and how long the runs under this cap have run, as 4
--        4 the seconds for which the running runs have run, joined by spaces; of RUNNING_SAMPLED of them at most
local base, slots, standings = KEYS[1], 0, {}
local most, clock = tonumber(ARGV[1]), redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000

local function ages_of(runs)
  local ages = {}
  for _, run in ipairs(runs) do
    local job = redis.call('HMGET', base .. run, 'state', 'claimed_at')
    local since = job[1] == 'running' and tonumber(job[2]) or now
    ages[#ages + 1] = string.format('%.1f', math.max(now - since, 0) / 1000)
  end
  return table.concat(ages, ' ')
end

local workers = redis.call('ZRANGE', base .. 'workers', 0, -1)
for _, worker in ipairs(workers) do slots = slots + string.match(worker, '|(%d+)$') end
local counts = {
  redis.call('ZCARD', base .. 'leases'), redis.call('ZCARD', base .. 'scheduled'), redis.call('ZCARD', base .. 'dead'),
  #workers, slots
}
for i, pending in ipairs({ 'pending:critical', 'pending:high', 'pending', 'pending:low' }) do
  local n, priority = #counts, 4 - i
  counts[n + 1] = redis.call('LLEN', base .. pending)
  counts[n + 2] = redis.call('ZCOUNT', base .. 'parked', priority, priority)
end
local ready = redis.call('ZCARD', base .. 'order')
local at_gates = {}
for i = 2, #ARGV do
  local run = ARGV[i]
  local job = redis.call('HMGET', base .. run, 'state', 'gate', 'user', 'priority', 'resource')
  local index, gate, ages = -1, 0, ''
  if job[1] == 'queued' then
    index = redis.call('ZRANK', base .. 'order', run) or -1
  elseif job[1] == 'parked' and job[2] and job[3] and job[4] then
    gate = tonumber(job[2])
    local names = { 'user:' .. job[4] .. ':' .. job[3], 'tier:' .. job[4], 'resource:' .. (job[5] or '') }
    local rank = redis.call('ZRANK', base .. 'parked:' .. names[gate], run)
    index = rank and ready + rank or -1
    local held = base .. 'held:' .. names[gate]
    at_gates[held] = at_gates[held] or ages_of(redis.call('SRANDMEMBER', held, most))
    ages = at_gates[held]
  end
  local n = #standings
  standings[n + 1], standings[n + 2], standings[n + 3], standings[n + 4] = index, gate, job[4] or '0', job[5] or ''
  standings[n + 5] = ages
end
return {
  counts, table.concat(redis.call('LRANGE', base .. 'durations', 0, -1), ' '), standings,
  ages_of(redis.call('ZRANGE', base .. 'leases', 0, most - 1))
}
