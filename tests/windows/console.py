"""What a person does at another process's console window: console.py PID ACT.

shown, type TEXT, interrupt (Ctrl-C), close (the X).

Under Wine 8 Ctrl-C reaches no other group, and the X of a window kills what is in it without a
word: there both do what Windows does then.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes.wintypes import DWORD, HANDLE, LPVOID, SMALL_RECT

if sys.platform != "win32":
    raise SystemExit("for Windows only")
PID, ACT = int(sys.argv[1]), sys.argv[2]
GENERIC, SHARED, EXISTING = 0xC0000000, 3, 3
WM_CLOSE, PROCESS_ALL_ACCESS = 0x10, 0x1FFFFF
EVENTS = {"interrupt": 0, "close": 2}  # CTRL_C_EVENT, CTRL_CLOSE_EVENT


class KeyEvent(ctypes.Structure):
    """INPUT_RECORD with a KEY_EVENT_RECORD."""

    _fields_ = (
        ("kind", ctypes.c_uint16),
        ("is_down", ctypes.c_int32),
        ("times", ctypes.c_uint16),
        ("key", ctypes.c_uint16),
        ("scan", ctypes.c_uint16),
        ("letter", ctypes.c_wchar),
        ("state", ctypes.c_uint32),
    )


class Screen(ctypes.Structure):
    """CONSOLE_SCREEN_BUFFER_INFO."""

    _fields_ = (
        ("width", ctypes.c_int16),
        ("height", ctypes.c_int16),
        ("cursor", ctypes.c_int32),
        ("attributes", ctypes.c_uint16),
        ("window", SMALL_RECT),
        ("most", ctypes.c_int32),
    )


def opened(name: str) -> HANDLE:
    """One end of the console."""
    return HANDLE(kernel32.CreateFileW(name, GENERIC, SHARED, None, EXISTING, 0, None))


def shown() -> str:
    """The text on the screen."""
    screen, handle = Screen(), opened("CONOUT$")
    kernel32.GetConsoleScreenBufferInfo(handle, ctypes.byref(screen))
    size = screen.width * screen.height
    text, count = ctypes.create_unicode_buffer(size + 1), DWORD()
    kernel32.ReadConsoleOutputCharacterW(handle, text, size, 0, ctypes.byref(count))
    at = range(0, size, screen.width)
    rows = ("".join(text[start : start + screen.width]).rstrip() for start in at)
    return "\n".join(rows).rstrip()


def press(letters: str) -> None:
    """Press these keys and let them go."""
    handle = opened("CONIN$")
    for letter in letters:
        key = ord(letter.upper())  # so it is for letters, digits and Return
        events = (KeyEvent * 2)(*(KeyEvent(1, down, 1, key, 0, letter, 0) for down in (1, 0)))
        assert kernel32.WriteConsoleInputW(handle, events, 2, ctypes.byref(DWORD()))


def tell_all(event: int) -> None:
    """Do as Windows does: call CtrlRoutine in each process of the console, the youngest first."""
    pids = (DWORD * 64)()
    count = kernel32.GetConsoleProcessList(pids, 64)
    routine = ctypes.cast(ctypes.WinDLL("kernelbase").CtrlRoutine, LPVOID)
    for pid in sorted(pids[:count], reverse=True):
        if pid != kernel32.GetCurrentProcessId():
            process = HANDLE(kernel32.OpenProcess(PROCESS_ALL_ACCESS, False, pid))
            kernel32.CreateRemoteThread(process, None, 0, routine, LPVOID(event), 0, None)
            kernel32.WaitForSingleObject(process, 100)


kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
for function in ("CreateFileW", "OpenProcess", "GetConsoleWindow", "CreateRemoteThread"):
    getattr(kernel32, function).restype = HANDLE
kernel32.CreateRemoteThread.argtypes = (
    HANDLE,
    LPVOID,
    ctypes.c_size_t,
    LPVOID,
    LPVOID,
    DWORD,
    LPVOID,
)
kernel32.FreeConsole()
if not kernel32.AttachConsole(PID):
    raise ctypes.WinError(ctypes.get_last_error())
if ACT == "type":
    press(sys.argv[3])
elif ACT in EVENTS and hasattr(ctypes.WinDLL("ntdll"), "wine_get_version"):
    tell_all(EVENTS[ACT])
elif ACT == "interrupt":
    kernel32.SetConsoleCtrlHandler(None, True)  # all in that console hear of it, we too
    assert kernel32.GenerateConsoleCtrlEvent(EVENTS[ACT], 0)
elif ACT == "close":
    ctypes.WinDLL("user32").PostMessageW(HANDLE(kernel32.GetConsoleWindow()), WM_CLOSE, 0, 0)
else:
    sys.stdout.buffer.write(shown().encode())
