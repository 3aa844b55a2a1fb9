-- Compare what the database says of runs with what the queue has of them, and mend what of it is lost or contradicts.
-- ARGV  3 lease, ms
--       4 jobs, JSON [[run id, user id, priority, resource or "", generation that the database has, since, ms,
--         queue (default when left out)], …]
-- keys  those of places.lua, leases
-- gives for each 0 when it was whole, 1 when it was mended, 2 when the queue has nothing that can be used, 3 when it is
--       over there
-- It never lets a run wait that does not: what is lost altogether is queued again by enqueue.lua.
local ends = string.format('%.0f', now + ARGV[3])

-- A member of a sorted set, with its score. Whether it had to be written. Scores are differences of large numbers, so
-- one that is worked out again may be off by 0.002 ms.
local function member(set, score, run)
  local there = redis.call('ZSCORE', set, run)
  if there and (not score or math.abs(tonumber(there) - tonumber(score)) < 0.01) then return false end
  redis.call('ZADD', set, score or ends, run)
  return true
end

-- The places that it must have by now: before the gate at which it is parked, and all when it has passed them.
local function hold_places(job)
  local mended = false
  for i = 1, job.state == 'parked' and job.gate - 1 or GATES do
    local name, cap = gate(i, job)
    if name and ((cap and cap > 0) or has_place(job, i)) then
      mended = redis.call('SADD', base .. 'held:' .. name, job.run) == 1 or not has_place(job, i) or mended
      take_place(job, i)
    end
  end
  return mended
end

local function queued(job)
  local order = of_queue(job.queue) .. 'order'
  local there = redis.call('ZSCORE', order, job.run)
  local score = job.score or there or score_of(job)
  local mended = member(order, score, job.run)
  show_queue(job.queue, score)
  if mended and not there then wake_one(job.queue) end
  if job.score then return mended end
  redis.call('HSET', base .. job.run, 'score', score)
  return true
end

local function parked(job)
  local name = gate(job.gate, job)
  local mended = member(base .. 'parked:' .. name, score_of(job), job.run)
  mended = member(of_queue(job.queue) .. 'parked', parked_score(job, job.gate), job.run) or mended
  show_queue(job.queue)
  return redis.call('SADD', base .. 'gates', name) == 1 or mended
end

local function mend(job, new)
  local mended, key, queue = false, base .. job.run, new[7] or DEFAULT
  -- Whose it is, and what it needs, cannot change while it waits. A claim keeps its places until it is settled.
  if job.queue ~= queue then
    -- Caps do not ask for the queue, so it keeps its state, and is written into the structures of its queue below.
    local lost = of_queue(job.queue)
    redis.call('ZREM', lost .. 'order', job.run)
    redis.call('ZREM', lost .. 'parked', job.run)
    redis.call('LREM', lost .. LISTS[job.priority], -1, job.run)
    redis.call('HSET', key, 'queue', queue)
    job.queue, mended = queue, true
  end
  if job.user ~= new[2] or job.priority ~= new[3] or job.resource ~= new[4] then
    redis.call('SREM', base .. 'waiting:' .. job.user, job.run)
    redis.call('HSET', key, 'user', new[2], 'priority', new[3], 'resource', new[4])
    if job.state ~= 'running' then
      withdraw(job)
      free(job)
      job.user, job.priority, job.resource = new[2], new[3], new[4]
      if job.state ~= 'scheduled' then
        enter(job, 1)
        return true
      end
    end
    job.user, job.priority, job.resource, mended = new[2], new[3], new[4], true
  end
  if job.lost_since then
    local set = job.state == 'parked' and base .. 'parked:' .. gate(job.gate, job) or of_queue(job.queue) .. 'order'
    local there = redis.call('ZSCORE', set, job.run)
    job.since = math.min(there and there + ahead(job) or new[6], now)
    redis.call('HSET', key, 'since', string.format('%.3f', job.since))
    mended = true
  end
  if job.state ~= 'running' and job.generation < new[5] then
    redis.call('HSET', key, 'generation', new[5])
    mended = true
  end
  if job.state == 'scheduled' then return member(base .. 'scheduled', job.due or stamp, job.run) or mended end
  if job.state == 'queued' then
    mended = queued(job) or mended
  elseif job.state == 'parked' then
    mended = parked(job) or mended
  else
    mended = member(base .. 'leases', nil, job.run) or mended
  end
  if job.state ~= 'running' then
    mended = redis.call('SADD', base .. 'waiting:' .. job.user, job.run) == 1 or mended
  end
  local places = job.places
  if hold_places(job) then
    if places ~= job.places then redis.call('HSET', key, 'places', job.places) end
    return true
  end
  return mended
end

local answers = {}
for i, new in ipairs(cjson.decode(ARGV[4])) do
  local job = read(new[1])
  if job and job.state ~= 'finished' then
    answers[i] = mend(job, new) and 1 or 0
  elseif job then
    answers[i] = 3
  else
    -- Its worker writes it again at its next heartbeat; without one its lease ends.
    local lease = redis.call('ZSCORE', base .. 'leases', new[1])
    answers[i] = lease and tonumber(lease) > now and 0 or 2
  end
end
wake_workers()
return answers
