-- Counts in a key whose TTL is set with the first count. KEYS: counter. ARGV: TTL in s. Returns the count, 1 for a key that
-- cannot count.
local count = redis.pcall('INCR', KEYS[1])
if type(count) ~= 'number' then return 1 end
if count == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return count
