-- Whether the structures that hold the same runs have as many entries as one another: every run that waits has been put
-- where it must be (compare.lua), so with the same number there is none too many. A run that the database does not want,
-- or that has no job, may hide one too many: when such runs have been removed the reconciler asks again.
-- ARGV  3 the gates where runs are parked, JSON   4 the users whose runs wait, JSON
-- keys  queues  heads  parked:{gate}  waiting:{user}; of each queue: order  parked  pending[:critical|:high|:low]
-- gives 1 when the gates differ from `parked`, else 0; and the same of the users and all that waits
-- A queue in which nothing waits is forgotten here.
local at_gates, of_users, parked, ordered = 0, 0, 0, 0
for _, name in ipairs(all_queues()) do
  local queue = of_queue(name)
  local of_order, of_parked = redis.call('ZCARD', queue .. 'order'), redis.call('ZCARD', queue .. 'parked')
  ordered, parked = ordered + of_order, parked + of_parked
  if name ~= DEFAULT and of_order + of_parked == 0 then
    redis.call('SREM', base .. 'queues', name)
    redis.call('ZREM', base .. 'heads', name)
    for _, list in pairs(LISTS) do redis.call('DEL', queue .. list) end
    redis.call('DEL', queue .. 'doorbell')
  end
end
for _, name in ipairs(cjson.decode(ARGV[3])) do at_gates = at_gates + redis.call('ZCARD', base .. 'parked:' .. name) end
for _, user in ipairs(cjson.decode(ARGV[4])) do of_users = of_users + redis.call('SCARD', base .. 'waiting:' .. user) end
return { at_gates == parked and 0 or 1, of_users == parked + ordered and 0 or 1 }
