-- Take the next runs of the worker's queues, in the order of their scores, and write their leases in the same step.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  1 most runs to take   2 lease, ms   3 worker id   4… the queues, one at least
--       last: whose queue it must be (platform.lua)
-- keys  {run_id}  waiting:{user}  leases  heads  doorbell:{worker_id}; of each queue: order
--       pending[:critical|:high|:low]  doorbell
-- gives 1 when runs of these queues may be left, else 0; then run id, user id, priority, resource, generation, crashes and
-- queue of each, in one flat list
-- With several queues it looks at the default one and at those in `heads` by their first runs, so what it costs depends
-- neither on how many runs wait nor on how many queues there are.
local base, worker, left = KEYS[1], ARGV[3], tonumber(ARGV[1])
local DEFAULT, QUEUES = 'default', #ARGV - 4
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local LISTS = { ['0'] = 'pending:low', ['1'] = 'pending', ['2'] = 'pending:high', ['3'] = 'pending:critical' }
-- Written for each run, and a number costs more to write than a string.
local ends, stamp = string.format('%.0f', now + ARGV[2]), string.format('%.0f', now)
local taken, leases = { 0 }, {}

local function of_queue(name)
  return name == DEFAULT and base or base .. 'queue:' .. name .. ':'
end

-- `runs` are out of the order of the queue by now.
local function take(name, runs, step)
  local queue = of_queue(name)
  for i = 1, #runs, step do
    local run = runs[i]
    local key = base .. run
    local job = redis.call('HMGET', key, 'state', 'user', 'priority', 'resource', 'generation', 'crashes', 'queue')
    local list, generation = LISTS[job[3]], tonumber(job[5])
    -- A job that has lost a field, or stood in another queue, is put right by the reconciler, from the database.
    if job[1] == 'queued' and job[2] and list and generation and (job[7] or DEFAULT) == name then
      generation = generation + 1
      redis.call('LREM', queue .. list, -1, run)
      redis.call('SREM', base .. 'waiting:' .. job[2], run)
      redis.call('HSET', key, 'state', 'running', 'worker', worker, 'generation', generation, 'claimed_at', stamp)
      leases[#leases + 1] = ends
      leases[#leases + 1] = run
      local n = #taken
      taken[n + 1], taken[n + 2], taken[n + 3], taken[n + 4] = run, job[2], job[3], job[4] or ''
      taken[n + 5], taken[n + 6], taken[n + 7] = generation, job[6] or '0', name
      left = left - 1
    end
  end
end

local function head_of(name)
  local head = redis.call('ZRANGE', of_queue(name) .. 'order', 0, 0, 'WITHSCORES')
  return head[1] and tonumber(head[2])
end

-- One entry wakes one worker. The worker that took it may have had no slot for the rest, or died before this call.
local function wake_for_the_rest(name)
  local queue = of_queue(name)
  if redis.call('EXISTS', queue .. 'order') == 0 then
    redis.call('DEL', queue .. 'doorbell')
  elseif redis.call('EXISTS', queue .. 'doorbell') == 0 then
    redis.call('LPUSH', queue .. 'doorbell', '1')
  end
end

local function take_of_several()
  local serves, looked_at = {}, {}
  for i = 4, 3 + QUEUES do serves[ARGV[i]] = true end
  local passed = 0 -- so many of the first in `heads` are not this worker's

  -- The named queue whose first run comes before those of the others, its score, and one that the others do not go below.
  local function first_named()
    while true do
      local page = redis.call('ZRANGE', base .. 'heads', passed, passed + 31, 'WITHSCORES')
      if #page == 0 then return nil end
      for i = 1, #page, 2 do
        local name, score = page[i], tonumber(page[i + 1])
        if not serves[name] then
          passed = passed + 1
        else
          local head = head_of(name)
          if head and head <= score then return name, head, tonumber(page[i + 3]) or math.huge end
          if head then
            redis.call('ZADD', base .. 'heads', head, name)
          else
            redis.call('ZREM', base .. 'heads', name)
            looked_at[name] = true
          end
          break
        end
      end
    end
  end

  while left > 0 do
    local name, score, bound = first_named()
    local default = serves[DEFAULT] and head_of(DEFAULT)
    if default and (not name or default <= score) then
      name, bound = DEFAULT, score or math.huge
    elseif name then
      bound = math.min(bound, default or math.huge)
    else
      break
    end
    local order = of_queue(name) .. 'order'
    local most = bound == math.huge and '+inf' or string.format('%.3f', bound)
    local runs = redis.call('ZRANGEBYSCORE', order, '-inf', most, 'LIMIT', 0, left)
    if #runs == 0 then runs = redis.call('ZRANGE', order, 0, 0) end
    redis.call('ZREM', order, unpack(runs))
    take(name, runs, 1)
    looked_at[name] = true
    if name ~= DEFAULT then
      local head = head_of(name)
      if head then redis.call('ZADD', base .. 'heads', head, name) else redis.call('ZREM', base .. 'heads', name) end
    end
  end
  for name in pairs(looked_at) do wake_for_the_rest(name) end
end

-- A worker that stops has put a second entry into its own wake-up list, for this very call.
local stops = redis.call('DEL', base .. 'doorbell:' .. worker) == 1
if stops then
  left = 0
elseif QUEUES == 1 then
  local name = ARGV[4]
  local runs = redis.call('ZPOPMIN', of_queue(name) .. 'order', left)
  take(name, runs, 2)
else
  take_of_several()
end
if QUEUES == 1 then wake_for_the_rest(ARGV[4]) end
if #leases > 0 then redis.call('ZADD', base .. 'leases', unpack(leases)) end
if left <= 0 then taken[1] = 1 end
return taken
