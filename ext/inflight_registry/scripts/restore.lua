-- Puts payloads that lost their index entry back into the index, a page of the jobs at a time.
-- KEYS: jobs, index. ARGV: cursor, page size, page size where the payloads are read too, shift of the clock in ms, TTL in s for an
-- index that has none.
-- Returns the next cursor ("0" at the end), then the ids put back.
local step = 1
local page = redis.pcall('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2], 'NOVALUES')
if page.err then
  -- Before Redis 7.4 there is no NOVALUES, and a page of large jobs would take long.
  step = 2
  page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[3])
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4])
local result = {page[1]}
for i = 1, #page[2], step do
  if redis.call('ZADD', KEYS[2], 'NX', now, page[2][i]) == 1 then result[#result + 1] = page[2][i] end
end
if #result > 1 and redis.call('TTL', KEYS[2]) < 0 then redis.call('EXPIRE', KEYS[2], ARGV[5]) end
return result
