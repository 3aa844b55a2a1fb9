-- What the scripts that move jobs share; each is loaded with this before it.
-- KEYS  1 what all keys of the queue begin with, "jobs:" behind the prefix; the others are made from it
-- ARGV  1 caps, JSON {"user": [4 by priority], "tier": [4], "resources": {name: cap}}, 0 is none; '' when all are none
--       2 ageing, ms a step
--       last: whose queue it must be (platform.lua)
-- The header of each script lists its further arguments and the keys it touches; those of this part are
--   platform  {run_id}  waiting:{user}  parked:{gate}  gates  held:{gate}  scheduled  queues  heads
--   and of each queue: order  pending[:critical|:high|:low]  parked  doorbell
local base, ageing = KEYS[1], tonumber(ARGV[2])
local caps = ARGV[1] ~= '' and cjson.decode(ARGV[1]) or { user = {}, tier = {}, resources = {} }
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
-- Written often, and a number costs more to write than a string.
local stamp = string.format('%.0f', now)

-- Redis without memory refuses a script whose first write may need some, and never one that has written before. What
-- keeps a claim, gives one up or moves a job takes no more memory than the job has, so these scripts begin so.
local function go_on_without_memory() redis.call('ZREM', base .. 'leases', '') end

local DEFAULT = 'default'
local LISTS = { [0] = 'pending:low', 'pending', 'pending:high', 'pending:critical' }
local GATES = 3
local STATES = { queued = true, parked = true, scheduled = true, running = true, finished = true }
local to_wake = {}

-- What the keys of one queue begin with.
local function of_queue(name)
  return name == DEFAULT and base or base .. 'queue:' .. name .. ':'
end

local function queue_of(run)
  return redis.call('HGET', base .. run, 'queue') or DEFAULT
end

-- All queues in which runs wait, and some in which none does any more.
local function all_queues()
  local names = redis.call('SMEMBERS', base .. 'queues')
  names[#names + 1] = DEFAULT
  return names
end

local function pending(job)
  return of_queue(job.queue) .. LISTS[job.priority]
end

local function wake_one(queue)
  to_wake[queue] = (to_wake[queue] or 0) + 1
end

-- Let the queue be found by those that look at all queues. Its score in `heads` is its first run's, or less: a claim
-- corrects it.
local function show_queue(queue, score)
  if queue == DEFAULT then return end
  redis.call('SADD', base .. 'queues', queue)
  if score then redis.call('ZADD', base .. 'heads', 'LT', score, queue) end
end

local function add_to_order(queue, score, run)
  redis.call('ZADD', of_queue(queue) .. 'order', score, run)
  show_queue(queue, score)
end

-- In `parked` a run has its priority as its score; where its user's own cap holds it back (it is in nobody else's way),
-- four more.
local function parked_score(job, i)
  return i == 1 and job.priority + 4 or job.priority
end

-- The cap that is the i-th in a job's way: its name, and how many may pass (nil or 0: any number).
local function gate(i, job)
  if i == 1 then
    return 'user:' .. job.priority .. ':' .. job.user, caps.user[job.priority + 1]
  elseif i == 2 then
    return 'tier:' .. job.priority, caps.tier[job.priority + 1]
  elseif i == 3 and job.resource ~= '' then
    return 'resource:' .. job.resource, caps.resources[job.resource]
  end
end

local function cap_of(name)
  local kind, rest = string.match(name, '^(%a+):(.*)$')
  if kind == 'user' then return 1, caps.user[tonumber(string.sub(rest, 1, 1)) + 1] or 0 end
  if kind == 'tier' then return 2, caps.tier[tonumber(rest) + 1] or 0 end
  return 3, caps.resources[rest] or 0
end

-- By how many ms a job goes before one of the lowest priority that has waited as long. A step of priority is worth
-- `ageing` ms of waiting (without ageing: more than anybody waits); critical is not reached by any waiting.
local function ahead(job)
  return job.priority == 3 and 1.6e13 or job.priority * (ageing > 0 and ageing or 4e12)
end

-- Lower is sooner.
local function score_of(job)
  return string.format('%.3f', job.since - ahead(job))
end

-- The job of a run. One that lacks what the scripts rely on is none: the reconciler writes it again.
local function read(run)
  local f = redis.pcall('HMGET', base .. run, 'state', 'generation', 'user', 'priority', 'resource', 'since', 'score',
    'places', 'gate', 'due', 'queue')
  if f.err then
    redis.call('DEL', base .. run)
    return nil
  end
  local job = { run = run, state = f[1], generation = tonumber(f[2]), user = f[3], priority = tonumber(f[4]),
    resource = f[5] or '', since = tonumber(f[6]), score = tonumber(f[7]) and f[7], places = tonumber(f[8]) or 0,
    gate = tonumber(f[9]), due = tonumber(f[10]), queue = f[11] or DEFAULT }
  if not (STATES[job.state] and job.generation and job.user and LISTS[job.priority]) then return nil end
  if not job.since then
    job.since, job.lost_since = job.score and job.score + ahead(job) or now, true
  end
  if job.state == 'parked' and not gate(job.gate, job) then return nil end
  return job
end

local function has_place(job, i)
  return math.floor(job.places / 2 ^ (i - 1)) % 2 == 1
end

local function take_place(job, i)
  if not has_place(job, i) then job.places = job.places + 2 ^ (i - 1) end
end

-- Let a job pass the gates from the i-th on; it waits to be taken, or is parked at the first gate that is full. `...`:
-- further fields to write.
local function enter(job, from, ...)
  local key = base .. job.run
  redis.call('SADD', base .. 'waiting:' .. job.user, job.run)
  for i = from, ARGV[1] ~= '' and GATES or 0 do
    local name, cap = gate(i, job)
    if name and cap and cap > 0 then
      local held = base .. 'held:' .. name
      if redis.call('SCARD', held) >= cap and redis.call('SISMEMBER', held, job.run) == 0 then
        redis.call('ZADD', base .. 'parked:' .. name, score_of(job), job.run)
        redis.call('ZADD', of_queue(job.queue) .. 'parked', parked_score(job, i), job.run)
        redis.call('SADD', base .. 'gates', name)
        show_queue(job.queue)
        redis.call('HSET', key, 'state', 'parked', 'gate', i, 'places', job.places,
          'since', string.format('%.3f', job.since), ...)
        return false
      end
      redis.call('SADD', held, job.run)
      take_place(job, i)
    end
  end
  job.score = score_of(job)
  redis.call('HSET', key, 'state', 'queued', 'score', job.score, 'places', job.places,
    'since', string.format('%.3f', job.since), ...)
  redis.call('LPUSH', pending(job), job.run)
  add_to_order(job.queue, job.score, job.run)
  wake_one(job.queue)
  return true
end

-- Let parked jobs in while there is room, `most` at most. Answers how many may be taken now.
local function let_in(name, most)
  local i, cap = cap_of(name)
  local held, parked, entered = base .. 'held:' .. name, base .. 'parked:' .. name, 0
  for _ = 1, most do
    if cap > 0 and redis.call('SCARD', held) >= cap then break end
    local run = redis.call('ZPOPMIN', parked)[1]
    if not run then break end
    local job = read(run)
    local is_parked = job and job.state == 'parked'
    if not is_parked then redis.call('ZREM', of_queue(queue_of(run)) .. 'parked', run) end
    -- What is parked at another gate by now waits there.
    if is_parked and gate(job.gate, job) == name then
      redis.call('ZREM', of_queue(job.queue) .. 'parked', run)
      if cap > 0 then
        redis.call('SADD', held, run)
        take_place(job, i)
      end
      -- What a user has parked counts from when it may run: a thousand old runs of one are not before all others.
      if i == 1 then job.since = now end
      if enter(job, i + 1) then entered = entered + 1 end
    end
  end
  if redis.call('EXISTS', parked) == 0 then redis.call('SREM', base .. 'gates', name) end
  return entered
end

-- Give up the places that a job has, and let the next in.
local function free(job)
  if job.places == 0 then return end
  for i = 1, GATES do
    local name = has_place(job, i) and gate(i, job)
    if name then
      redis.call('SREM', base .. 'held:' .. name, job.run)
      if redis.call('EXISTS', base .. 'parked:' .. name) == 1 then let_in(name, 1) end
    end
  end
  job.places = 0
end

-- Take a job out of wherever it waits.
local function withdraw(job)
  if job.state == 'queued' then
    redis.call('ZREM', of_queue(job.queue) .. 'order', job.run)
    redis.call('LREM', pending(job), -1, job.run)
  elseif job.state == 'parked' then
    redis.call('ZREM', base .. 'parked:' .. gate(job.gate, job), job.run)
    redis.call('ZREM', of_queue(job.queue) .. 'parked', job.run)
  elseif job.state == 'scheduled' then
    redis.call('ZREM', base .. 'scheduled', job.run)
  end
  redis.call('SREM', base .. 'waiting:' .. job.user, job.run)
end

-- Where it stood, as if nobody had taken it: its places are still its own.
local function put_back(job)
  redis.call('HSET', base .. job.run, 'state', 'queued')
  redis.call('SADD', base .. 'waiting:' .. job.user, job.run)
  redis.call('RPUSH', pending(job), job.run)
  add_to_order(job.queue, job.score or score_of(job), job.run)
  wake_one(job.queue)
end

-- Of jobs that are over the last hundred stay.
local function remember_finished(runs)
  local over = redis.call('LPUSH', base .. 'finished', unpack(runs)) - 100
  if over <= 0 then return end
  for _, run in ipairs(redis.call('RPOP', base .. 'finished', over)) do
    -- It may have been queued again.
    if redis.call('HGET', base .. run, 'state') == 'finished' then redis.call('DEL', base .. run) end
  end
end

-- One entry wakes one worker. A worker that leaves runs behind adds an entry again.
local function wake_workers()
  for queue, count in pairs(to_wake) do
    local wake_ups, list = { '1' }, of_queue(queue) .. 'doorbell'
    for i = 2, math.min(count, 100) do wake_ups[i] = '1' end
    if redis.call('LPUSH', list, unpack(wake_ups)) > 100 then redis.call('LTRIM', list, 0, 99) end
  end
end
