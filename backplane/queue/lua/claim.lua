-- Take the next runs of the worker's queues, in the order of their scores, and write their leases in the same step.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  1 most runs to take   2 lease, ms   3 worker id   4 the queue, or several as ",name,name,"
--       5 whose queue it must be (platform.lua)
-- keys  {run_id}  waiting:{user}  leases  heads  queues  doorbell:{worker_id}; of each queue: order  parked
--       pending[:critical|:high|:low]  doorbell
-- gives 1 when runs of these queues may be left, else 0; then run id, user id, priority, resource, generation, crashes and
-- queue of each, in one flat list
-- With several queues it looks at the default one and at those in `heads` by their first runs. When it has passed over as
-- many queues of other workers as this one serves, it looks at the worker's own one by one. So what it costs depends
-- neither on how many runs wait nor on how many queues there are: a process of ten agents looks at some twenty.
local base, worker, left = KEYS[1], ARGV[3], tonumber(ARGV[1])
local DEFAULT, serves = 'default', ARGV[4]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local LISTS = { ['0'] = 'pending:low', ['1'] = 'pending', ['2'] = 'pending:high', ['3'] = 'pending:critical' }
-- Written for each run, and a number costs more to write than a string.
local ends, stamp = string.format('%.0f', now + ARGV[2]), string.format('%.0f', now)
local taken, leases, PAGE = { 0 }, {}, 4

local function of_queue(name)
  return name == DEFAULT and base or base .. 'queue:' .. name .. ':'
end

-- An agent's queue in which nothing waits any more is forgotten at once: there may be as many as agents.
local function forget_if_agents(name, queue)
  if string.sub(name, 1, 6) == 'agent:' and redis.call('EXISTS', queue .. 'parked') == 0 then
    redis.call('SREM', base .. 'queues', name)
  end
end

-- A run that is out of the order of its queue.
local function take(name, queue, run)
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

-- One entry wakes one worker. The worker that took it may have had no slot for the rest, or died before this call.
local function wake_for_the_rest(queue, is_empty)
  if is_empty then
    redis.call('DEL', queue .. 'doorbell')
  elseif redis.call('EXISTS', queue .. 'doorbell') == 0 then
    redis.call('LPUSH', queue .. 'doorbell', '1')
  end
end

local function take_of_several()
  -- The queues that are looked at, each with a page of its first runs: run id, score, run id, score, …
  local looked_at, is_looked_at = {}, {}
  local function look_at(name, listed)
    local of = { name = name, queue = of_queue(name), listed = listed, out = {}, page = {}, at = 1, size = 2 }
    looked_at[#looked_at + 1], is_looked_at[name] = of, true
    return of
  end

  -- The score of its first run; nil: there is none.
  local function first_of(of)
    if not of.page[of.at] and not of.is_empty then
      of.page = redis.call('ZRANGE', of.queue .. 'order', #of.out, #of.out + of.size - 1, 'WITHSCORES')
      of.at, of.size, of.is_empty = 1, 16, #of.page == 0
    end
    return tonumber(of.page[of.at + 1])
  end

  local heads, passed, next_head, of_others = {}, 0, 1, 0
  local served, all_looked_at = select(2, string.gsub(serves, ',', '')) - 1, false
  local function look_at_all()
    for name in string.gmatch(serves, '[^,]+') do
      if not is_looked_at[name] then look_at(name) end
    end
    all_looked_at = true
  end

  -- The next of `heads` that the worker serves, and its score there: no run of it or of a later one comes before that.
  -- nil: there is none, or all that it serves are looked at.
  local function next_listed()
    while not all_looked_at do
      if of_others > served then
        look_at_all()
        return nil
      end
      if not heads[next_head] then
        heads, next_head = redis.call('ZRANGE', base .. 'heads', passed, passed + PAGE - 1, 'WITHSCORES'), 1
        if #heads == 0 then return nil end
      end
      if string.find(serves, ',' .. heads[next_head] .. ',', 1, true) then
        return heads[next_head], tonumber(heads[next_head + 1])
      end
      passed, next_head, of_others = passed + 1, next_head + 2, of_others + 1
    end
  end

  -- The one whose first run comes first, and the score of that run.
  local function best_of_all()
    local best, score
    for _, of in ipairs(looked_at) do
      local first = first_of(of)
      if first and (not score or first < score) then best, score = of, first end
    end
    return best, score
  end

  if string.find(serves, ',' .. DEFAULT .. ',', 1, true) then look_at(DEFAULT) end
  while left > 0 do
    local before = #looked_at
    local name, listed = next_listed()
    local best, score = best_of_all()
    while name and (not score or listed < score) do
      passed, next_head = passed + 1, next_head + 2
      local of = look_at(name, listed)
      local first = first_of(of)
      if first and (not score or first < score) then best, score = of, first end
      before = #looked_at
      name, listed = next_listed()
    end
    if #looked_at > before then best = best_of_all() end
    if not best then break end
    best.out[#best.out + 1] = best.page[best.at]
    best.at = best.at + 2
    take(best.name, best.queue, best.out[#best.out])
  end
  for _, of in ipairs(looked_at) do
    local first = first_of(of)
    for i = 1, #of.out, 1000 do
      redis.call('ZREM', of.queue .. 'order', unpack(of.out, i, math.min(i + 999, #of.out)))
    end
    if of.name ~= DEFAULT and (of.listed or #of.out > 0) then
      if not first then
        redis.call('ZREM', base .. 'heads', of.name)
        forget_if_agents(of.name, of.queue)
      elseif first ~= of.listed then
        redis.call('ZADD', base .. 'heads', first, of.name)
      end
    end
    wake_for_the_rest(of.queue, not first)
  end
end

-- A worker that stops has put a second entry into its own wake-up list, for this very call.
local stops = redis.call('DEL', base .. 'doorbell:' .. worker) == 1
if stops then left = 0 end
if string.sub(serves, 1, 1) == ',' then
  take_of_several()
else
  local queue = of_queue(serves)
  local runs = left > 0 and redis.call('ZPOPMIN', queue .. 'order', left) or {}
  for i = 1, #runs, 2 do take(serves, queue, runs[i]) end
  local is_empty = redis.call('EXISTS', queue .. 'order') == 0
  if is_empty and #runs > 0 and string.sub(serves, 1, 6) == 'agent:' then
    redis.call('ZREM', base .. 'heads', serves)
    forget_if_agents(serves, queue)
  end
  wake_for_the_rest(queue, is_empty)
end
if #leases > 0 then redis.call('ZADD', base .. 'leases', unpack(leases)) end
if left <= 0 then taken[1] = 1 end
return taken
