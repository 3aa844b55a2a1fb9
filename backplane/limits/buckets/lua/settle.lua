-- Take what was estimated too low, give back what was estimated too high.
-- ARGV  own+1 tokens, negative to give back   own+2 a name that no other settlement has
-- keys  done:{name}
if is_done(ARGV[own + 2]) then return end
for _, b in ipairs(buckets) do take(b, tonumber(ARGV[own + 1])) end
done(ARGV[own + 2])
