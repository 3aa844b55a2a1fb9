-- Take a lease that is free, or renew one's own.
-- KEYS  1 the lease
-- ARGV  1 owner   2 how long it holds, ms
-- gives 1 when the owner has it now, else 0
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
