-- KEYS: GC lock. ARGV: own process id, TTL in s, 1 if the caller knows itself to be the holder.
-- Returns nil when the lock was taken, otherwise the process id of its holder.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return false end
-- pcall: a key of another type is nobody's lock.
local holder = redis.pcall('GET', KEYS[1])
if type(holder) ~= 'string' then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  return false
end
if holder == ARGV[1] and ARGV[3] ~= '1' then
  -- An earlier try took it, whose answer was lost.
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  return false
end
-- No version writes a lock without a TTL, which would keep everyone out for ever.
if redis.call('TTL', KEYS[1]) == -1 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return holder
