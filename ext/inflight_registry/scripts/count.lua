-- Lets a counter come to a number, if it has not yet. Its TTL is set with the first count. KEYS: counter. ARGV: number, TTL in s.
-- pcall: a key that cannot count begins anew.
local count = redis.pcall('GET', KEYS[1])
count = type(count) == 'string' and count:match('^%d+$') and tonumber(count)
if not count then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
elseif count < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
end
