/**
 * What decides on the server, in one step for all that a process asks at once: Lua 5.1 as Redis runs it.
 *
 * **Keys.** All of a model's keys share one hash tag. `meta` has the clock, the configuration and the epoch; `permits` the
 * permits that are taken and `leases` the undated reservations, by the time at which they lapse; `held` what those hold;
 * `line` and `claims` the processes that wait, in order, and what the first request of each one needs; `members` the
 * processes, by the time at which they are given up; `replies` the last reply to each process. Then one hash for each cell.
 *
 * **Cells.** A limit is counted in one cell or several, each with a length and a capacity of its own:
 *
 * - `s`, a sliding window in 1,024 slices. What is charged in a slice counts until the end of the slice and the length of
 *   the window have passed: never too short, and too long by a slice at most. What is in it needs no more than the slices.
 * - `b`, a bucket: what is missing of it, when that was so, and the least that has been missing since each charge.
 * - `f`, a window of the wall clock, whose edges the process has worked out.
 * - `t`, all of time.
 * - `p`, what runs at once, as leases.
 *
 * **Time** is the server's. When its clock is set back it goes on from where it was.
 *
 * **Retries.** A process sends one call at a time, numbered. One that comes again, because its reply was lost, has the
 * reply that there was; an older one does nothing.
 *
 * **The line.** A process whose first request does not fit claims its place, and is told when that will fit behind the
 * claims before its own; nobody else is let in at their cost. One that has been let in and has more goes to the end, and
 * takes no more at once than would leave as much for each of the others. A claim holds until its process has to have asked
 * again, whether it was called or not. When something is given back, those for whom it is enough are called.
 */
import * as Redis from "effect/persistence/Redis"

const lua = String.raw`
local call = cjson.decode(ARGV[1])
local META, PERMITS, HELD, LEASES, LINE, CLAIMS, MEMBERS, REPLIES =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local pid, cells, model = call.pid, call.cells, call.model
local slices, chunk = 1024, 100
-- Steps of a bucket that are kept apart.
local exact = 64
-- How long the last reply to a process is kept that has gone silent: it may come back, and ask for it again.
local silence = 3600000

-- Calls that come again ---------------------------------------------------------------------------------------------

local before = tonumber(redis.call('HGET', REPLIES, pid) or 0)
if before == call.seq then return redis.call('HGET', REPLIES, pid .. ':reply') end
if before > call.seq then return '{"stale":true}' end

-- The clock ---------------------------------------------------------------------------------------------------------

local time = redis.call('TIME')
local wall = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
local meta = redis.call('HMGET', META, 'offset', 'last', 'config', 'epoch', 'lapsed', 'spare', 'hold')
local offset, last = tonumber(meta[1] or 0), tonumber(meta[2] or 0)
local now = wall + offset
if now < last then
  offset = offset + last - now
  now = last
  redis.call('HSET', META, 'offset', offset)
end

-- Who is there ------------------------------------------------------------------------------------------------------

local changed = false

local function forget(gone)
  redis.call('ZREM', MEMBERS, gone)
  redis.call('HDEL', REPLIES, gone, gone .. ':reply')
  redis.call('ZREM', LINE, gone)
  redis.call('HDEL', CLAIMS, gone)
  changed = true
end

local function cull()
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', MEMBERS, '-inf', now - silence)) do
    if gone ~= pid then forget(gone) end
  end
end

local function members() return redis.call('ZCOUNT', MEMBERS, string.format('(%.17g', now), '+inf') end

if call.join then
  local join = call.join
  local others = members() - (tonumber(redis.call('ZSCORE', MEMBERS, pid) or 0) > now and 1 or 0)
  if meta[3] and meta[3] ~= call.config and others > 0 and not join.replace then
    return cjson.encode({ conflict = redis.call('HGET', META, 'limits'), others = others })
  end
  redis.call('HSET', META, 'config', call.config, 'limits', join.limits)
  if not meta[4] then
    meta[4] = join.epoch
    redis.call('HSET', META, 'epoch', join.epoch)
  end
  redis.call('ZADD', MEMBERS, now + call.lease, pid)
elseif not meta[3] or (call.epoch and meta[4] ~= call.epoch) then
  return '{"lost":true}'
elseif meta[3] ~= call.config then
  return cjson.encode({ changed = redis.call('HGET', META, 'limits') })
end
for _, each in ipairs(cells) do
  -- With more digits it could be rounded to the other side of an edge.
  if each.k == 'f' and (wall < each.from or wall >= each.to) then return cjson.encode({ clock = math.floor(wall) }) end
end

-- Nobody was heard for longer than all of them would be silent: it was the server that was away, and what processes hold
-- lapses when they have had time to say that they are there.
local spare, hold = tonumber(meta[6] or 0), tonumber(meta[7] or 0)
if last > 0 and now - last > call.beat + call.grace then
  spare = now + call.patience
  redis.call('HSET', META, 'spare', spare)
end
redis.call('HSET', META, 'last', now)

local function lapsing() return now < spare and '-inf' or now end

-- Cells -------------------------------------------------------------------------------------------------------------

local loaded, freed = {}, false
local fields = { 'u', 'h', 'n', 'l', 'p', 'f', 'e', 'a', 'w', 'g', 'q', 'qa', 'qp', 'z', 'x', 'c', 'd', 'i' }

-- The steps of a bucket: charges, the oldest first, and the least that has been missing since each one, which grows from
-- each to the next up to all that is missing. { id, least, id, least, ... }

-- So much is missing now, and never was less before.
local function fill(c, missing)
  c.u = missing
  local d = c.d
  while #d > 0 and (#d > 2 and d[#d - 2] or 0) >= missing do
    d[#d] = nil
    d[#d] = nil
  end
  if #d > 0 then d[#d] = math.min(d[#d], missing) end
end

-- More is missing from now on.
local function drain(c, amount)
  c.u = c.u + amount
  local d = c.d
  c.i = math.max(c.i + 1, math.floor(now))
  if c.u <= 0 then return c.i end
  d[#d + 1] = c.i
  d[#d + 1] = c.u
  if #d > 2 * exact then
    -- What joins a newer one is out of reach of what is given back of it.
    local kept = {}
    for at = 3, #d, 4 do
      kept[#kept + 1] = d[at]
      kept[#kept + 1] = d[at + 1]
    end
    if kept[#kept] ~= c.u then
      kept[#kept + 1] = d[#d - 1]
      kept[#kept + 1] = d[#d]
    end
    c.d = kept
  end
  return c.i
end

-- As if a charge had been smaller from the start: of what is given back a full bucket keeps nothing.
local function restore(c, id, amount)
  local d = c.d
  local own = #d - 1
  while own > 0 and d[own] > id do own = own - 2 end
  if own < 1 then return end
  local by = math.min(amount, d[own + 1])
  local most = d[own + 1] - by
  c.u = c.u - by
  local kept = {}
  local before = 0
  for at = 1, #d, 2 do
    local least = at < own and math.min(d[at + 1], most) or d[at + 1] - by
    if least > before then
      kept[#kept + 1] = d[at]
      kept[#kept + 1] = least
      before = least
    end
  end
  c.d = kept
end

-- A bucket of another size is at the same level.
local function resize(c, by)
  c.u = c.u + by
  local kept = {}
  for at = 1, #c.d, 2 do
    if c.d[at + 1] + by > 0 then
      kept[#kept + 1] = c.d[at]
      kept[#kept + 1] = c.d[at + 1] + by
    end
  end
  if #kept == 0 and c.u > 0 then kept = { 0, c.u } end
  c.d = kept
end

local function advance(c)
  if c.k == 's' then
    if not c.f then return end
    local dead = math.floor((now - c.len) / c.width + 1e-9) - 1
    if c.f > dead then return end
    if c.e <= dead then
      redis.call('DEL', c.key)
      c.u, c.f, c.e = 0, nil, nil
      c.isNew, c.dirty = true, true
      return
    end
    for from = c.f, dead, chunk do
      local names = {}
      for k = from, math.min(dead, from + chunk - 1) do names[#names + 1] = string.format('%d', k) end
      local amounts = redis.call('HMGET', c.key, unpack(names))
      local gone = {}
      for i, amount in ipairs(amounts) do
        if amount then
          c.u = c.u - tonumber(amount)
          gone[#gone + 1] = names[i]
        end
      end
      if #gone > 0 then redis.call('HDEL', c.key, unpack(gone)) end
    end
    c.f, c.dirty = dead + 1, true
  elseif c.k == 'b' then
    fill(c, math.max(c.cap - c.burst, c.u - c.rate * math.max(0, now - c.a)))
    c.a = now
  elseif c.k == 'f' then
    if c.w and c.w >= c.from then return end
    -- What was charged just before the edge counts on both sides of it.
    c.u = c.x == c.from and c.g or 0
    c.g, c.w, c.x = 0, c.from, c.to
  elseif c.k == 'p' then
    redis.call('ZREMRANGEBYSCORE', c.key, '-inf', lapsing())
    c.u = redis.call('ZCARD', c.key)
  end
end

-- That only a part of a limit is enforced, as one process has learned, holds for everybody as long as it says so.
local function lowest(c)
  if c.part < 1 then
    if not c.q or c.part <= c.q or c.qp == pid or now - c.qa > 10000 then
      c.q, c.qa, c.qp, c.dirty = c.part, now, pid, true
    end
  elseif c.qp == pid then
    c.q, c.dirty = nil, true
  end
  if c.q and c.q < c.part and now - c.qa <= 10000 then
    local by = c.q / c.part
    if not c.fixed then c.cap = c.cap * by end
    if c.k == 'b' then
      c.rate = c.rate * by
      if not c.fixed then c.burst = c.burst * by end
    end
  end
end

local date

-- Nobody will tell when the requests of a process that is gone have ended: it was now.
local function lapse(c, amount)
  c.h = math.max(0, c.h - amount)
  date(c, amount)
  c.dirty = true
end

local lapsed = tonumber(meta[5] or 0)

local function cell(i)
  local c = loaded[i]
  if c then return c end
  c = cells[i]
  c.key = KEYS[8 + i]
  loaded[i] = c
  if c.k == 'p' then
    c.h = 0
    advance(c)
    return c
  end
  local v = redis.call('HMGET', c.key, unpack(fields))
  c.u, c.h, c.n, c.l = tonumber(v[1] or 0), tonumber(v[2] or 0), tonumber(v[3] or 0), tonumber(v[4] or 0)
  c.p, c.f, c.e = tonumber(v[5] or 0), tonumber(v[6] or nil), tonumber(v[7] or nil)
  c.a, c.w, c.g = tonumber(v[8] or now), tonumber(v[9] or nil), tonumber(v[10] or 0)
  c.q, c.qa, c.qp, c.z = tonumber(v[11] or nil), tonumber(v[12] or 0), v[13] or nil, tonumber(v[14] or now)
  c.x = tonumber(v[15] or nil)
  c.isNew = not v[14]
  -- What is shorter has too many digits.
  if c.len then c.width = math.max(c.len / slices, 0.02) end
  if c.isNew and c.cold then c.u = c.cap end
  if c.part then lowest(c) end
  if c.k == 'b' then
    c.d, c.i = v[17] and cjson.decode(v[17]) or { 0, c.u }, tonumber(v[18] or 0)
    if c.part and v[16] then resize(c, c.cap - tonumber(v[16])) end
  end
  advance(c)
  if lapsed > 0 then
    local amount = redis.call('HGET', HELD, 'lapsed ' .. c.name)
    if amount then
      redis.call('HDEL', HELD, 'lapsed ' .. c.name)
      lapsed = redis.call('HINCRBY', META, 'lapsed', -1)
      lapse(c, tonumber(amount))
    end
  end
  return c
end

local function save(i)
  local c = loaded[i]
  if c.k == 'p' then
    redis.call('PEXPIRE', c.key, call.lease * 2)
    return
  end
  local set = { 'u', c.u, 'h', c.h, 'n', c.n, 'l', c.l, 'p', c.p, 'a', c.a, 'g', c.g, 'z', c.z }
  local function also(name, value)
    if value then
      set[#set + 1] = name
      set[#set + 1] = value
    end
  end
  also('f', c.f)
  also('e', c.e)
  also('w', c.w)
  also('x', c.x)
  if c.k == 'b' then
    if c.part then also('c', c.cap) end
    also('d', cjson.encode(c.d))
    also('i', c.i)
  end
  if c.q then
    also('q', c.q)
    also('qa', c.qa)
    also('qp', c.qp)
  elseif c.qp then
    redis.call('HDEL', c.key, 'q', 'qa', 'qp')
  end
  redis.call('HSET', c.key, unpack(set))
  if i > model or c.isNew then redis.call('PEXPIRE', c.key, math.ceil(2 * (call.lease + math.max(60000, c.keep)))) end
end

function date(c, amount)
  if c.k == 's' then
    local k = math.floor(now / c.width)
    redis.call('HINCRBYFLOAT', c.key, string.format('%d', k), amount)
    c.u = c.u + amount
    if not c.f then c.f = k end
    c.e = k
    return k
  end
  if c.k == 'b' then
    -- What it has above its capacity is for one large request: nothing of it is left after any.
    c.u = math.max(0, c.u)
    return drain(c, amount)
  end
  c.u = c.u + amount
  if c.k == 'f' then
    if wall + c.margin < c.to then return c.w end
    c.g = c.g + amount
    return -c.x
  end
  return c.u
end

-- When so much of a window is free again.
local function freedAt(c, amount)
  local left = amount
  for from = c.f or 0, c.e or -1, chunk do
    local names = {}
    for k = from, math.min(c.e, from + chunk - 1) do names[#names + 1] = string.format('%d', k) end
    for i, each in ipairs(redis.call('HMGET', c.key, unpack(names))) do
      if each then
        left = left - tonumber(each)
        if left <= c.tolerance / 2 then return (from + i) * c.width + c.len end
      end
    end
  end
  return now + c.len
end

-- When an amount fits behind others: now if it does, infinity when no passing of time makes it fit.
local function fitsAt(c, amount, ahead)
  local at = math.max(now, c.p or 0)
  local allowed = c.tolerance
  if c.k == 'p' then return c.u + ahead + amount <= c.cap and math.max(now, hold) or math.huge end
  if c.k == 'b' then
    if (c.pace and now >= c.z + c.pace) or (c.cold and c.n == 0) then return at end
    local large = amount > c.cap and amount <= c.burst
    local most = large and c.burst or c.cap
    local needed = c.h + math.min(amount, most) + ahead
    local level = math.min(c.cap - c.u, large and ahead == 0 and c.burst or c.cap)
    -- Nothing is asked of a bucket in one piece but what it can hold.
    local missing = needed - level
    if c.h + math.min(amount, most) > most + allowed then return math.huge end
    if missing > allowed then at = math.max(at, now + missing / c.rate) end
    return c.pace and math.min(at, c.z + c.pace) or at
  end
  local room = math.max(c.cap, amount) - c.h - amount
  if room < -allowed then return math.huge end
  local need = c.u + ahead - room
  if c.k == 'f' then
    if need <= allowed and wall + c.margin < c.to then
      return math.max(at, now + math.max(0, c.from + c.margin - wall))
    end
    if c.g + ahead <= room + allowed then return math.max(at, now + c.to + c.margin - wall) end
    return math.max(at, now + c.after + c.margin - wall)
  end
  if need <= allowed then return at end
  if c.k == 't' then return math.huge end
  if need > c.u then return math.max(at, now + c.len) end
  return math.max(at, freedAt(c, need))
end

-- What lapses -------------------------------------------------------------------------------------------------------

if redis.call('ZREMRANGEBYSCORE', PERMITS, '-inf', lapsing()) > 0 then freed = true end
local overdue = redis.call('ZRANGEBYSCORE', LEASES, '-inf', lapsing(), 'LIMIT', 0, 50)
if #overdue > 0 then
  local places = {}
  for i, each in ipairs(cells) do places[each.name] = i end
  for _, token in ipairs(overdue) do
    for _, each in ipairs(cjson.decode(redis.call('HGET', HELD, token) or '[]')) do
      local i = places[each[1]]
      if i then
        lapse(cell(i), each[2])
      elseif each[2] ~= 0 then
        -- When somebody asks about it again.
        if redis.call('HSETNX', HELD, 'lapsed ' .. each[1], 0) == 1 then
          lapsed = redis.call('HINCRBY', META, 'lapsed', 1)
        end
        redis.call('HINCRBYFLOAT', HELD, 'lapsed ' .. each[1], each[2])
      end
    end
    redis.call('HDEL', HELD, token)
    redis.call('ZREM', LEASES, token)
  end
end

-- The line ----------------------------------------------------------------------------------------------------------

local line = {}
local names = redis.call('ZRANGE', LINE, 0, 63)
if #names > 0 then
  for i, claim in ipairs(redis.call('HMGET', CLAIMS, unpack(names))) do
    local name = names[i]
    local is = claim and cjson.decode(claim)
    if name == pid or (is and is.till >= now) then
      line[#line + 1] = { pid = name, claim = is, mine = name == pid }
    else
      redis.call('ZREM', LINE, name)
      redis.call('HDEL', CLAIMS, name)
      changed = true
    end
  end
end

local function leave()
  if redis.call('ZREM', LINE, pid) > 0 then
    redis.call('HDEL', CLAIMS, pid)
    changed = true
  end
  for i, each in ipairs(line) do
    if each.mine then
      table.remove(line, i)
      return
    end
  end
end

local function sums(all)
  local sum, permits = {}, 0
  for i = 1, model do sum[i] = 0 end
  for _, each in ipairs(line) do
    if each.mine and not all then break end
    if not each.mine and each.claim and each.claim.config == call.config then
      for i = 1, model do sum[i] = sum[i] + (each.claim.a[i] or 0) end
      permits = permits + each.claim.permit
    end
  end
  return sum, permits
end

local function permitsFree()
  if not call.permits then return math.huge end
  return hold > now and 0 or call.permits - redis.call('ZCARD', PERMITS)
end

-- Operations --------------------------------------------------------------------------------------------------------

local operations = {}

-- Lets requests in as they come, until one does not fit.
function operations.admit(op)
  local grants, blocked = {}, nil
  local ahead, aheadPermits = sums(false)
  local all, allPermits
  local free = permitsFree()
  for j, head in ipairs(op.heads) do
    local times = 1
    if j > 1 then
      if not all then all, allPermits = sums(true) end
      ahead, aheadPermits, times = all, allPermits, j
    end
    if head.permit == 1 and free - aheadPermits * times < 1 then
      blocked = { by = 0, at = hold > now and hold or math.huge }
      break
    end
    local parts = {}
    for i = 1, model do parts[i] = { i, head.a[i], ahead[i] * times } end
    for _, each in ipairs(head.own or {}) do parts[#parts + 1] = { each[1], each[2], 0 } end
    local at, by = now, nil
    for _, part in ipairs(parts) do
      local c = cell(part[1])
      -- What has nothing left for it fails a request, but not what waits for others to tell what they have charged.
      if not c.fails or c.p > now then
        local fits = fitsAt(c, part[2], part[3])
        if fits > at then at, by = fits, part[1] end
      end
    end
    if not by then
      for _, part in ipairs(parts) do
        local c = cell(part[1])
        if c.fails and not blocked then
          local fits = fitsAt(c, part[2], 0)
          if fits > now then
            blocked = { by = part[1], at = fits, exceeds = c.u + c.h }
          elseif fitsAt(c, part[2], part[3]) > now then
            -- Who is before it may want all that is left, or not.
            blocked = { by = part[1], at = math.huge }
          end
        end
      end
    else
      blocked = { by = by, at = at }
    end
    if blocked then break end
    local marks, held = {}, {}
    for _, part in ipairs(parts) do
      local c, amount = cell(part[1]), part[2]
      local mark = -1
      if c.k == 'p' then
        redis.call('ZADD', c.key, now + call.lease, head.id)
        c.u = c.u + 1
        marks[#marks + 1] = { part[1], 0, 0, 0 }
      else
        c.n = c.n + amount
        if c.dated then
          mark = date(c, amount)
        else
          c.h = c.h + amount
          held[#held + 1] = { c.name, amount }
        end
        marks[#marks + 1] = { part[1], mark, c.n, c.cap - c.u - c.h }
      end
      c.dirty = true
    end
    if head.permit == 1 then
      redis.call('ZADD', PERMITS, now + call.lease, head.id)
      free = free - 1
    end
    if #held > 0 then
      redis.call('HSET', HELD, head.id, cjson.encode(held))
      redis.call('ZADD', LEASES, now + call.lease, head.id)
    end
    grants[j] = marks
  end
  local reply = { grants = grants }
  if blocked then
    local head = op.heads[#grants + 1]
    reply.by = blocked.by
    reply.wait = blocked.at == math.huge and -1 or blocked.at - now
    reply.exceeds = blocked.exceeds
    if #grants > 0 or blocked.exceeds then leave() end
    if blocked.by > model then
      -- Those of other tenants come next and have its place. It is void if there are none.
      for _, each in ipairs(line) do
        if each.mine and each.claim then
          each.claim.till = now + call.grace
          redis.call('HSET', CLAIMS, pid, cjson.encode(each.claim))
        end
      end
    elseif not blocked.exceeds then
      redis.call('ZADD', LINE, 'NX', redis.call('HINCRBY', META, 'turn', 1), pid)
      redis.call('HSET', CLAIMS, pid, cjson.encode({
        due = math.min(blocked.at, now + call.poll),
        till = now + call.poll + call.grace,
        permit = head.permit,
        a = head.a,
        config = call.config,
        process = call.process
      }))
    end
  else
    leave()
  end
  return reply
end

-- Only what there is to say to everybody.
function operations.hear() return 0 end

function operations.leave()
  leave()
  return 0
end

-- Where what was somewhere else before this call is now.
local dated = {}

-- Dates charges now whose requests were sent so late that they would be gone before the provider forgets them. So long
-- they have counted from before on: whoever was let in meanwhile was let in beside them. { cell, mark, amount }.
function operations.redate(op)
  local marks = {}
  for j, each in ipairs(op.list) do
    local c, mark, amount = cell(each[1]), each[2], each[3]
    if c.k == 's' and c.f and mark >= c.f and mark <= c.e then
      redis.call('HINCRBYFLOAT', c.key, string.format('%d', mark), -amount)
      c.u = c.u - amount
    elseif c.k == 'b' then
      -- What was refilled since then was not, where the request has come to.
      restore(c, mark, amount - math.min(amount, c.rate * op.late))
    elseif c.k == 'f' and (mark == c.w or mark == -c.x) then
      c.u = c.u - amount
      if mark == -c.x then c.g = math.max(0, c.g - amount) end
    elseif c.k == 't' then
      c.u = c.u - amount
    end
    marks[j] = date(c, amount)
    dated[op.id .. ' ' .. c.name] = marks[j]
    c.dirty = true
  end
  return marks
end

-- Changes what a reservation was charged: { cell, mark, by, amount to date or -1 }.
function operations.effects(op)
  local kept = redis.call('HGET', HELD, op.id)
  local held = kept and cjson.decode(kept) or {}
  local marks = {}
  for j, each in ipairs(op.list) do
    local c, by, dates = cell(each[1]), each[3], each[4]
    local name = op.id .. ' ' .. c.name
    local mark = dated[name] or each[2]
    marks[j] = mark
    if c.k == 'p' then
      if redis.call('ZREM', c.key, op.id) > 0 then
        c.u = c.u - 1
        freed = true
      end
    elseif mark == -1 then
      -- Unless its lease has lapsed, and its charge has a date since then.
      if kept then
        c.h = c.h + by
        for at, one in ipairs(held) do
          if one[1] == c.name then
            one[2] = one[2] + by
            if dates ~= -1 then
              c.h = c.h - dates
              marks[j] = date(c, dates)
              dated[name] = marks[j]
              table.remove(held, at)
            end
            break
          end
        end
        if by < 0 then freed = true end
      end
    elseif c.k == 's' then
      if c.f and mark >= c.f and mark <= c.e and by ~= 0 then
        redis.call('HINCRBYFLOAT', c.key, string.format('%d', mark), by)
        c.u = c.u + by
        if by < 0 then freed = true end
      end
    elseif c.k == 'f' then
      -- Negative it is the end of a window, just before which it was.
      if mark == c.w or mark == -c.x or mark == -c.w then
        c.u = c.u + by
        if mark == -c.x then c.g = math.max(0, c.g + by) end
        if by < 0 then freed = true end
      end
    elseif c.k == 'b' then
      if by < 0 then
        restore(c, mark, -by)
        freed = true
      elseif by > 0 then
        marks[j] = drain(c, by)
        dated[name] = marks[j]
      end
    else
      c.u = c.u + by
      if by < 0 then freed = true end
    end
    c.dirty = true
  end
  if kept then
    if #held == 0 then
      redis.call('HDEL', HELD, op.id)
      redis.call('ZREM', LEASES, op.id)
    else
      redis.call('HSET', HELD, op.id, cjson.encode(held))
    end
  end
  return marks
end

function operations.release(op)
  if redis.call('ZREM', PERMITS, unpack(op.ids)) > 0 then freed = true end
  return 0
end

-- Others than these processes have used so much of a limit, as far as nobody else has said so before.
function operations.lower(op)
  local c = cell(op.cell)
  -- Numbers lose digits on their way.
  if math.abs(c.l - op.seen) > c.tolerance + 1e-9 * c.l then return 0 end
  date(c, op.by)
  c.l = c.l + op.by
  c.dirty = true
  return 1
end

function operations.pause(op)
  local c = cell(op.cell)
  c.p = math.max(c.p, now + op.millis)
  c.dirty = true
  return 0
end

-- What a pause is for windows, for what runs at one time.
function operations.hold(op)
  hold = math.max(hold, now + op.millis)
  redis.call('HSET', META, 'hold', hold)
  return 0
end

function operations.warm(op)
  local c = cell(op.cell)
  c.z = 1
  c.dirty = true
  return 0
end

-- Charges of earlier, which the server has lost: { cell, how long ago, amount }.
function operations.replay(op)
  for _, each in ipairs(op.list) do
    local c = cell(each[1])
    if c.k == 's' then
      local k = math.floor((now - each[2]) / c.width)
      if k > math.floor((now - c.len) / c.width) - 1 then
        redis.call('HINCRBYFLOAT', c.key, string.format('%d', k), each[3])
        c.u = c.u + each[3]
        c.f = c.f and math.min(c.f, k) or k
        c.e = c.e and math.max(c.e, k) or k
      end
    elseif c.k == 'b' then
      -- What was refilled since then is refilled for all of them together, and is left out: a bucket is empty at worst.
      local missing = math.min(c.cap, math.max(0, c.u) + each[3])
      if missing > c.u then drain(c, missing - c.u) end
    elseif c.k ~= 'p' and (c.k ~= 'f' or wall - each[2] >= c.from) then
      c.u = c.u + each[3]
    end
    c.dirty = true
  end
  return 0
end

-- The leases of a process that is there, and the end of those that are not.
function operations.beat(op)
  local until_ = now + call.lease
  for from = 1, #op.permits, 500 do
    local add = {}
    for i = from, math.min(#op.permits, from + 499) do
      add[#add + 1] = until_
      add[#add + 1] = op.permits[i]
    end
    redis.call('ZADD', PERMITS, unpack(add))
  end
  for _, token in ipairs(op.tokens) do redis.call('ZADD', LEASES, 'XX', until_, token) end
  for _, each in ipairs(op.running) do
    redis.call('ZADD', KEYS[8 + each[1]], until_, each[2])
    redis.call('PEXPIRE', KEYS[8 + each[1]], call.lease * 2)
  end
  redis.call('ZADD', MEMBERS, until_, pid)
  cull()
  for i = 1, 8 + model do redis.call('PEXPIRE', KEYS[i], call.ttl) end
  return { members = members() }
end

-- When a request fits behind others, if nothing but time passes; without what may be given back, if so asked.
function operations.predict(op)
  local at = now
  for _, each in ipairs(op.list) do
    local c, ahead = cell(each[1]), each[3]
    if not c.fails and c.k ~= 'p' and not (op.earliest and c.returns) then
      local sum = ahead + math.min(each[2], c.cap)
      if c.k == 'b' then
        local once = math.min(sum, c.cap)
        at = math.max(at, fitsAt(c, once, 0) + (sum - once) / c.rate)
      elseif c.k == 'f' then
        local windows = math.ceil((sum - math.max(0, c.cap - c.h - c.u)) / c.cap - 1e-9)
        if sum <= c.cap or windows <= 0 then
          at = math.max(at, fitsAt(c, math.min(sum, c.cap), 0))
        else
          at = math.max(at, now + c.to - wall + (windows - 1) * (c.to - c.from) + c.margin)
        end
      else
        local lengths = math.max(0, math.ceil(sum / c.cap - 1e-9) - 1)
        local length = c.len or math.huge
        local first = fitsAt(c, sum - lengths * c.cap, 0)
        at = math.max(at, lengths == 0 and first or first + lengths * length)
      end
    end
  end
  return at == math.huge and -1 or at - now
end

-- The budgets that have too little left: { cell, used, wait }.
function operations.exceeds(op)
  for _, each in ipairs(op.list) do
    local c = cell(each[1])
    local fits = fitsAt(c, each[2], 0)
    if fits > now and c.p <= now then return { each[1], c.u + c.h, fits == math.huge and -1 or fits - now } end
  end
  return 0
end

-- What is used of each limit, and when there is more.
function operations.read()
  local waits = {}
  for i = 1, model do
    local fits = fitsAt(cell(i), cells[i].unit, 0)
    waits[i] = fits == math.huge and -1 or fits - now
  end
  return { waits = waits, permits = redis.call('ZCARD', PERMITS) }
end

function operations.bye(op)
  if #op.permits > 0 and redis.call('ZREM', PERMITS, unpack(op.permits)) > 0 then freed = true end
  leave()
  forget(pid)
  return 0
end

local answers = {}
for i, op in ipairs(call.ops) do answers[i] = operations[op.op](op) end

-- Those who wait for what has become free.
if (freed or changed) and #line > 0 then
  local sum, permits = {}, permitsFree()
  for i = 1, model do sum[i] = 0 end
  for _, each in ipairs(line) do
    if not each.mine and each.claim and each.claim.config == call.config then
      local fits = each.claim.permit == 0 or permits >= 1
      for i = 1, model do
        if fits and not cells[i].fails and fitsAt(cell(i), each.claim.a[i] or 0, sum[i]) > now then fits = false end
      end
      if not fits then break end
      permits = permits - each.claim.permit
      for i = 1, model do sum[i] = sum[i] + (each.claim.a[i] or 0) end
      -- Once: it is on its way then.
      if each.claim.due > now then
        each.claim.due = now
        redis.call('HSET', CLAIMS, each.pid, cjson.encode(each.claim))
        redis.call('PUBLISH', call.channel .. each.claim.process, each.pid)
      end
    end
  end
end

local sync = {}
for i = 1, model do
  local c = cell(i)
  sync[i] = { c.u, c.h, c.n, c.l, math.max(0, c.p - now), now - c.z, c.cap }
end
-- What has lapsed is gone from all that was looked at.
for i, c in pairs(loaded) do
  if c.dirty or c.isNew then save(i) end
end
local reply = cjson.encode({ wall = math.floor(wall), epoch = meta[4], answers = answers, sync = sync })
if not call.last then redis.call('HSET', REPLIES, pid, call.seq, pid .. ':reply', reply) end
-- What was not there at the last beat.
for i = 1, 8 do
  if redis.call('PTTL', KEYS[i]) == -1 then redis.call('PEXPIRE', KEYS[i], call.ttl) end
end
return reply
`

/** The script: what a process says goes in as text, and what it is told comes out as text. */
export const decide = Redis.script(
  (keys: ReadonlyArray<string>, call: string) => [...keys, call],
  { lua, numberOfKeys: (keys) => keys.length }
).withReturnType<string>()
