-- The next stale entries, oldest first, from where the last page ended.
-- KEYS: index. ARGV: cut-off in ms, page size, then (not for the first page) the id and score that the last page ended with and
-- how many of that page's entries and of those before it had this very score.
-- The place is found by rank, which costs O(log n) also among a million entries of equal score.
-- Returns ids and scores alternately, up to the page size, those at or above the cut-off left out.
local index, cutoff, size = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local start = 0
if ARGV[3] then
  local score = redis.call('ZSCORE', index, ARGV[3])
  if score and tonumber(score) == tonumber(ARGV[4]) then
    start = redis.call('ZRANK', index, ARGV[3]) + 1
  else
    -- That entry has moved or gone meanwhile.
    start = redis.call('ZCOUNT', index, '-inf', '(' .. ARGV[4]) + ARGV[5]
  end
end
local found = redis.call('ZRANGE', index, start, start + size - 1, 'WITHSCORES')
local stale = {}
for i = 1, #found, 2 do
  if tonumber(found[i + 1]) >= cutoff then break end
  stale[i] = found[i]
  stale[i + 1] = found[i + 1]
end
return stale
