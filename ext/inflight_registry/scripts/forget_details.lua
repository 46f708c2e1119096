-- Removes the details of requests that are no longer registered, among the oldest of them.
-- KEYS: details index, details, index. ARGV: how many to look at.
-- pcall: nothing here is worth more than the sweep that calls it.
local oldest = redis.pcall('ZRANGE', KEYS[1], 0, ARGV[1] - 1)
if oldest.err then return end
for _, id in ipairs(oldest) do
  if not redis.call('ZSCORE', KEYS[3], id) then
    redis.pcall('ZREM', KEYS[1], id)
    redis.pcall('HDEL', KEYS[2], id)
  end
end
