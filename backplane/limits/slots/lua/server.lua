-- What the scripts of the model slots share; each is loaded with this before it. All that is known of a server is one
-- hash, read whole: it has as many fields as there are calls with a slot or in the line, which the workers' own slots bound.
-- KEYS  1 what all keys of the models begin with, "models:" behind the prefix
-- ARGV  1 server   2 calls at once   3 models at once, 0 is any   4 a model's turn, ms   5 worker   6 its lease, ms
--       7 the epoch that the worker knows, '' none   8 how long nothing is granted when it is another now, ms
-- keys  server:{server}   bell:{worker}   waits:{run_id}
-- fields of the server  epoch   withheld   c:{worker}.{number} arrived|granted or nothing|user|run|model
--       w:{worker} lease's end   u:{user} when served last   m:{model} 'used' or 'wanted' and since when; times in µs
local base, server, worker = KEYS[1], ARGV[1], ARGV[5]
local parallel, models, turn, lease = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] * 1000, ARGV[6] * 1000
local key = base .. 'server:' .. server
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Redis without memory refuses a script whose first write may need some, and never one that has written before. A hash
-- of calls is small, and a lease that could not be renewed would let a call too many in.
redis.call('HDEL', key, '')

local function text(time) return string.format('%.0f', time) end
local stamp = text(now)

local epoch, withheld
-- The call that gets the script's answer, and needs no wake-up.
local asking
local calls, workers, served, marks = {}, {}, {}, {}
local held = { all = 0, model = {}, user = {} }
local waiting = { all = 0, model = {}, user = {} }

local function count(call, by)
  local of = call.granted and held or waiting
  of.all = of.all + by
  of.model[call.model] = (of.model[call.model] or 0) + by
  of.user[call.user] = (of.user[call.user] or 0) + by
end

local function set_mark(model, state)
  if state then
    marks[model] = { state = state, since = now }
    redis.call('HSET', key, 'm:' .. model, state .. ' ' .. stamp)
  else
    marks[model] = nil
    redis.call('HDEL', key, 'm:' .. model)
  end
end

-- A model is in use, or wanted and not in use, since when. It stays in use between two calls while one waits for it.
local function mark(model)
  local was, state = marks[model] and marks[model].state, nil
  if (held.model[model] or 0) > 0 then state = 'used'
  elseif (waiting.model[model] or 0) > 0 then state = was or 'wanted' end
  if state ~= was then set_mark(model, state) end
end

local function write(call)
  -- The model last: it is the one of them that may hold any character.
  redis.call('HSET', key, 'c:' .. call.id, table.concat({ text(call.arrived), call.granted and text(call.granted) or '',
    call.user, call.run, call.model }, '|'))
end

local function add(call)
  calls[call.id] = call
  count(call, 1)
  write(call)
  mark(call.model)
end

local function drop(call)
  calls[call.id] = nil
  count(call, -1)
  redis.call('HDEL', key, 'c:' .. call.id)
  redis.call('HDEL', base .. 'waits:' .. call.run, call.id)
  mark(call.model)
end

local function keep_lease()
  workers[worker] = now + lease
  redis.call('HSET', key, 'w:' .. worker, text(now + lease))
end

-- Which models may have calls now: whether all places are taken; the model that gets no more calls, because its turn is
-- over and another is wanted, or because it is one too many; the model that a free place goes to: the one that is wanted
-- longest. One too many is what a worker brings that comes back after its lease was over.
local function places()
  local used, oldest, newest, wanted = 0, nil, nil, nil
  for model, m in pairs(marks) do
    if m.state == 'used' then
      used = used + 1
      if not oldest or m.since < marks[oldest].since then oldest = model end
      if not newest or m.since > marks[newest].since then newest = model end
    elseif not wanted or m.since < marks[wanted].since then
      wanted = model
    end
  end
  local full = models > 0 and used >= models
  local leaving = full and (used > models and newest or wanted and marks[oldest].since + turn <= now and oldest)
  if leaving and (held.model[leaving] or 0) == 0 then
    set_mark(leaving, 'wanted')
    return places()
  end
  return full, leaving, models > 0 and not full and wanted
end

local function came_before(a, b)
  if a.arrived ~= b.arrived then return a.arrived < b.arrived end
  return a.id < b.id
end

-- Whose turn it is. Among the calls of models that may have one users take turns, but none goes more than one slot above
-- an even share while another waits; of one user the first that came.
local function next_call()
  local full, leaving, entering = places()
  local users = 0
  for _, n in pairs(held.user) do users = users + (n > 0 and 1 or 0) end
  for user, n in pairs(waiting.user) do users = users + (n > 0 and (held.user[user] or 0) == 0 and 1 or 0) end
  local most = math.ceil(parallel / users) + 1

  local best, best_over, best_served
  for _, call in pairs(calls) do
    if not call.granted then
      local fits
      if entering then
        fits = call.model == entering
      else
        fits = call.model ~= leaving and not (full and marks[call.model].state == 'wanted')
      end
      if fits then
        local over = (held.user[call.user] or 0) >= most and 1 or 0
        local last = served[call.user] or 0
        local better = not best
        if best then
          if over ~= best_over then better = over < best_over
          elseif last ~= best_served then better = last < best_served
          else better = came_before(call, best) end
        end
        if better then best, best_over, best_served = call, over, last end
      end
    end
  end
  return best
end

-- Give out what is free, and wake who gets it.
local function grant()
  if now < withheld then return end
  while held.all < parallel and waiting.all > 0 do
    local call = next_call()
    if not call then return end
    count(call, -1)
    call.granted = now
    count(call, 1)
    write(call)
    mark(call.model)
    served[call.user] = now
    redis.call('HSET', key, 'u:' .. call.user, stamp)
    redis.call('HDEL', base .. 'waits:' .. call.run, call.id)
    if call.id ~= asking then
      local wake_ups = base .. 'bell:' .. call.worker
      redis.call('LPUSH', wake_ups, call.id)
      redis.call('PEXPIRE', wake_ups, ARGV[6])
    end
  end
end

-- The waiting calls of each user, and when the first of them came.
local function lines()
  local found = {}
  for _, call in pairs(calls) do
    if not call.granted then
      local line = found[call.user]
      if not line then
        line = { first = call.arrived }
        found[call.user] = line
      end
      line[#line + 1] = call
      if call.arrived < line.first then line.first = call.arrived end
    end
  end
  return found
end

-- How many are served up to this call if all take turns and the models do not matter; reported to whoever asks why it waits.
local function place_of(call, found)
  local own, last = found[call.user], served[call.user] or 0
  if not call.turn then
    table.sort(own, came_before)
    for i, other in ipairs(own) do other.turn = i end
  end
  local place = call.turn
  for user, line in pairs(found) do
    if user ~= call.user then
      local theirs = served[user] or 0
      local first = theirs < last or theirs == last and line.first < own.first
      place = place + math.min(#line, first and call.turn or call.turn - 1)
    end
  end
  local waits = base .. 'waits:' .. call.run
  redis.call('HSET', waits, call.id, cjson.encode({ what = 'slot', server = server, model = call.model,
    since = text(call.arrived), ['until'] = text(now + lease), position = place, waiting = waiting.all,
    slots = math.max(parallel, 0) }))
  redis.call('PEXPIRE', waits, ARGV[6])
  return place
end

local CALL, WORKER, USER, MODEL = string.byte('cwum', 1, 4)
local flat = redis.call('HGETALL', key)
for i = 1, #flat, 2 do
  local field, value = flat[i], flat[i + 1]
  local kind, name = string.byte(field), string.sub(field, 3)
  if field == 'epoch' then
    epoch = value
  elseif field == 'withheld' then
    withheld = tonumber(value)
  elseif kind == CALL then
    local arrived, granted, user, run, model = string.match(value, '^(%d+)|(%d*)|([^|]*)|([^|]*)|(.*)$')
    local call = { id = name, worker = string.sub(name, 1, #worker), user = user, model = model, run = run,
      arrived = tonumber(arrived), granted = tonumber(granted) }
    calls[name] = call
    count(call, 1)
  elseif kind == WORKER then
    workers[name] = tonumber(value)
  elseif kind == USER then
    served[name] = tonumber(value)
  elseif kind == MODEL then
    local state, since = string.match(value, '^(%a+) (%d+)$')
    marks[name] = { state = state, since = tonumber(since) }
  end
end
withheld = withheld or 0
if not epoch then
  epoch = stamp
  redis.call('HSET', key, 'epoch', epoch)
end
-- Redis was emptied: the slots of others are not known before each of them has renewed it.
if ARGV[7] ~= '' and ARGV[7] ~= epoch then
  withheld = tonumber(epoch) + ARGV[8] * 1000
  redis.call('HSET', key, 'withheld', text(withheld))
end
-- Workers that died.
for name, ends in pairs(workers) do
  if ends <= now and name ~= worker then
    workers[name] = nil
    redis.call('HDEL', key, 'w:' .. name)
  end
end
for _, call in pairs(calls) do
  if call.worker ~= worker and not workers[call.worker] then drop(call) end
end
