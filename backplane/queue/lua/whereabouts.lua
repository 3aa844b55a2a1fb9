-- Where the queue has a run. A script and no transaction, which Redis refuses while it is full.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  1 run id
-- keys  {run_id}  scheduled  leases; of its queue: order  parked
-- gives the state in its hash ('': there is none), then 1 or 0 for each of the other keys: it stands there
local base, run = KEYS[1], ARGV[1]
local job = redis.call('HMGET', base .. run, 'state', 'queue')
local found = { job[1] or '' }
local queue = (job[2] or 'default') == 'default' and base or base .. 'queue:' .. job[2] .. ':'
for i, set in ipairs({ queue .. 'order', queue .. 'parked', base .. 'scheduled', base .. 'leases' }) do
  found[i + 1] = redis.call('ZSCORE', set, run) and 1 or 0
end
return found
