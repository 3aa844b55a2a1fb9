-- Where the queue has a run. A script and no transaction, which Redis refuses while it is full.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  1 run id
-- keys  {run_id}  order  parked  scheduled  leases
-- gives the state in its hash ('': there is none), then 1 or 0 for each of the other keys: it stands there
local found = { redis.call('HGET', KEYS[1] .. ARGV[1], 'state') or '' }
for i, name in ipairs({ 'order', 'parked', 'scheduled', 'leases' }) do
  found[i + 1] = redis.call('ZSCORE', KEYS[1] .. name, ARGV[1]) and 1 or 0
end
return found
