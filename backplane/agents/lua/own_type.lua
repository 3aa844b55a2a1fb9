-- What is in the registry is a copy: a key of another type was written by somebody else, and gives way.
local function give_way(key, type)
  local there = redis.call('TYPE', key).ok
  if there ~= type and there ~= 'none' then redis.call('DEL', key) end
end
