"""The router's sticky hash in Lua, for proxies that have none like it."""

from __future__ import annotations

from serve.router.assignment import cut_points, parts
from serve.router.policy import Policy

# Integers of Lua 5.3 and newer, and the bit library of LuaJIT, whose results are signed.
XOR_LUA53 = "local function xor(a, b) return a ~ b end"
XOR_LUAJIT = "local function xor(a, b) return bit.bxor(a, b) % 4294967296 end"

MURMUR2 = """
-- a * b modulo 2^32 by halves of a, so that doubles are exact too
local function times(a, b)
  local low = a % 65536
  return ((a - low) / 65536 * b % 65536 * 65536 + low * b) % 4294967296
end

local function right(a, bits) return math.floor(a / 2 ^ bits) end

local M = 1540483477

-- MurmurHash2 as nginx's split_clients has it: 32 bit, seed 0
local function murmur2(data)
  local h, n, i = #data % 4294967296, #data, 1
  while n >= 4 do
    local a, b, c, d = string.byte(data, i, i + 3)
    local k = times(a + b * 256 + c * 65536 + d * 16777216, M)
    k = times(xor(k, right(k, 24)), M)
    h = xor(times(h, M), k)
    i, n = i + 4, n - 4
  end
  if n > 0 then
    local k = 0
    for j = n - 1, 0, -1 do k = k * 256 + string.byte(data, i + j) end
    h = times(xor(h, k), M)
  end
  h = times(xor(h, right(h, 13)), M)
  return xor(h, right(h, 15))
end
"""


def split_function(policy: Policy, xor: str) -> str:
    """`ab_split(key)` in Lua: the name of the arm that a key gets."""
    shares = parts(policy)
    cuts = cut_points(shares)
    lines = [f'  if h < {cut} then return "{name}" end' for cut, (_, name) in zip(cuts, shares, strict=False)]
    body = "\n".join(
        (f'  local h = murmur2("{policy.experiment}:" .. key)', *lines, f'  return "{shares[-1][1]}"')
    )
    return f"{xor}\n{MURMUR2}\nlocal function ab_split(key)\n{body}\nend\n"
