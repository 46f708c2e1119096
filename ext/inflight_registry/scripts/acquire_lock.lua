-- KEYS: GC lock. ARGV: own process id, TTL in s, 1 if the caller knows itself to be the holder.
-- Returns nil when the lock was taken, otherwise the process id of its holder.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return false end
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] and ARGV[3] ~= '1' then
  -- An earlier try took it, whose answer was lost.
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  return false
end
return holder
