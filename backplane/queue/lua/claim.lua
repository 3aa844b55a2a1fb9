-- Take the next runs and write their leases in the same step.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  1 most runs to take   2 lease, ms   3 worker id   4 whose queue it must be (platform.lua)
-- keys  {run_id}  waiting:{user}  order  pending[:critical|:high|:low]  leases  doorbell  doorbell:{worker_id}
-- gives run id, user id, priority, resource, generation, crashes of each, in one flat list
local base, worker = KEYS[1], ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local PENDING = { ['0'] = base .. 'pending:low', ['1'] = base .. 'pending', ['2'] = base .. 'pending:high',
  ['3'] = base .. 'pending:critical' }
local taken, leases = {}, {}
-- A worker that stops has put a second entry into its own wake-up list, for this very call.
if redis.call('DEL', base .. 'doorbell:' .. worker) == 0 then
  -- Written for each run, and a number costs more to write than a string.
  local ends, stamp = string.format('%.0f', now + ARGV[2]), string.format('%.0f', now)
  local next_runs = redis.call('ZPOPMIN', base .. 'order', ARGV[1])
  for i = 1, #next_runs, 2 do
    local run = next_runs[i]
    local key = base .. run
    local job = redis.call('HMGET', key, 'state', 'user', 'priority', 'resource', 'generation', 'crashes')
    local list, generation = PENDING[job[3]], tonumber(job[5])
    -- A job that has lost a field is written again by the reconciler, from the database.
    if job[1] == 'queued' and job[2] and list and generation then
      generation = generation + 1
      redis.call('LREM', list, -1, run)
      redis.call('SREM', base .. 'waiting:' .. job[2], run)
      redis.call('HSET', key, 'state', 'running', 'worker', worker, 'generation', generation, 'claimed_at', stamp)
      leases[#leases + 1] = ends
      leases[#leases + 1] = run
      local n = #taken
      taken[n + 1], taken[n + 2], taken[n + 3], taken[n + 4] = run, job[2], job[3], job[4] or ''
      taken[n + 5], taken[n + 6] = generation, job[6] or '0'
    end
  end
  if #leases > 0 then redis.call('ZADD', base .. 'leases', unpack(leases)) end
end
-- A worker that took the entry may have had no slot for the rest, or died before this call.
if redis.call('EXISTS', base .. 'order') == 0 then
  redis.call('DEL', base .. 'doorbell')
elseif redis.call('EXISTS', base .. 'doorbell') == 0 then
  redis.call('LPUSH', base .. 'doorbell', '1')
end
return taken
