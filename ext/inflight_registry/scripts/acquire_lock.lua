-- KEYS: GC lock. ARGV: own process id, TTL in s.
-- Returns nil when the lock was taken now, otherwise the process id of its holder.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return false end
return redis.call('GET', KEYS[1])
