@echo off
rem Start Limner's page on Windows; arguments go to app.py. The first start installs everything into .venv here.
rem LIMNER_TORCH_INDEX names a package index to take torch from instead of the one that suits this machine.
setlocal
cd /d "%~dp0" || goto failed
fc /b pyproject.toml .venv\installed.toml >nul 2>&1 && goto start

set "python="
for %%v in (3.13 3.12 3.11) do if not defined python py -%%v -c "" >nul 2>&1 && set "python=py -%%v"
if not defined python python -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1 && set "python=python"
if not defined python goto no_python

rem cu128 serves the NVIDIA cards since the RTX 20 series (compute capability 7.5), cu126 the older ones.
set "index=https://download.pytorch.org/whl/cpu"
set "capability="
nvidia-smi --query-gpu=compute_cap --format=csv,noheader >nul 2>&1 || goto install
for /f "tokens=1,2 delims=. " %%a in ('nvidia-smi --query-gpu^=compute_cap --format^=csv^,noheader') do (
  if not defined capability set "capability=%%a%%b"
)
if not defined capability goto install
set "index=https://download.pytorch.org/whl/cu128"
if %capability% lss 75 set "index=https://download.pytorch.org/whl/cu126"

:install
if defined LIMNER_TORCH_INDEX set "index=%LIMNER_TORCH_INDEX%"
echo Installing Limner, with torch from %index%. This takes some minutes and several GB.
if not exist .venv\Scripts\python.exe %python% -m venv .venv || goto failed
.venv\Scripts\python.exe -m pip install --disable-pip-version-check --index-url "%index%" "torch>=2.6" || goto failed
.venv\Scripts\python.exe -m pip install --disable-pip-version-check -e . || goto failed
rem An update that changes it installs again.
copy /y pyproject.toml .venv\installed.toml >nul || goto failed

:start
.venv\Scripts\python.exe -X utf8 app.py %* || goto failed
exit /b 0

:no_python
echo Limner needs Python 3.11 or newer: https://www.python.org/downloads/
echo Check "Add python.exe to PATH" when you install it, then start again.

:failed
pause
exit /b 1
