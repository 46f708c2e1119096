-- Removes the details of requests that are no longer registered, among a page of them, oldest first.
-- KEYS: details index, details, index. ARGV: rank of the first, how many to look at.
-- Returns how many were looked at, and how many of them removed.
-- pcall: nothing here is worth more than the sweep that calls it.
local page = redis.pcall('ZRANGE', KEYS[1], ARGV[1], ARGV[1] + ARGV[2] - 1)
if page.err then return {0, 0} end
local forgotten = 0
for _, id in ipairs(page) do
  if not redis.call('ZSCORE', KEYS[3], id) then
    redis.pcall('ZREM', KEYS[1], id)
    redis.pcall('HDEL', KEYS[2], id)
    forgotten = forgotten + 1
  end
end
return {#page, forgotten}
