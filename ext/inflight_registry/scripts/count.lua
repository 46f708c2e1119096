-- Counts in a key whose TTL is set with the first count. KEYS: counter. ARGV: TTL in s. Returns the count.
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return count
