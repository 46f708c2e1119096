-- Gives the GC lock its full TTL again if it is ours. KEYS: GC lock. ARGV: own process id, TTL in s.
-- Returns 1 when it is ours, otherwise 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('EXPIRE', KEYS[1], ARGV[2])
